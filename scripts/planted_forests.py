"""Simulated forests with planted effects, to see which signal credits which turn.

Every turn is good or bad by the toss of a fair coin, and how likely a leaf is right depends only on
which turns of its path are good. So the true value of a node is known, and with it what a signal
should say: how much the turn itself adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from malt_jax.credit.influence import Sequences, gains
from malt_jax.credit.verdict import read_verdict, verdict_agreement
from malt_jax.tree.adaptive import allocate, first_pass, outcome_variance
from malt_jax.tree.node import WIDEST, Node, Tree

BASE, EFFECT = 0.2, 0.6
"""P(right) without what the effect needs, and how much it adds."""
FITS = (0.6, 0.9)
"""P(a verdict is true of the draft it judges) of a bad critique and of a good one."""
SAID = ("The answer is wrong.", "Every step is right.")
"""What a critique says that rejects its draft, and one that approves."""
SETTLED = (0.03, 0.97)
"""P(right) of questions that are too hard and of questions that are too easy."""
EFFECTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "draft": (0,),
        "critique": (1,),
        "refinement": (2,),
        "draft and critique": (0, 1),
        "draft and refinement": (0, 2),
        "critique and refinement": (1, 2),
    }
)
"""The turns that must all be good, by depth, for a leaf to be right more often."""


@dataclass(frozen=True)
class Planted:
    """A simulated forest and what is true of its nodes. Level d has shape `[Q, b_1, ..., b_d]`."""

    rewards: Float[Array, "Q *branches"]
    good: list[Bool[Array, "Q *_"]]
    """Whether each turn is a good one."""
    values: list[Float[Array, "Q *_"]]
    """P(right) of a leaf below each node."""
    advantages: list[Float[Array, "Q *_"]]
    """True value minus the mean over what could have been said in its place."""


def plant(
    key: Array, questions: int, branches: Sequence[int], needed: Sequence[int], *,
    base: float = BASE, effect: float = EFFECT, settled: float = 0.0,
) -> Planted:  # fmt: skip
    """A forest in which P(right) = base + effect if all turns at the depths `needed` are good.

    A share of the questions is `settled`: whatever is said, P(right) is SETTLED of one kind or the
    other.
    """
    shapes = [(questions, *branches[: d + 1]) for d in range(len(branches))]
    *keys, last = jax.random.split(key, len(branches) + 1)
    good = [jax.random.bernoulli(k, 0.5, shape) for k, shape in zip(keys, shapes, strict=True)]
    values, advantages = [], []
    # All needed turns so far are good; `[Q]` of them before the first turn.
    so_far = jnp.ones((questions,), bool)
    before = jnp.full((questions,), base + effect * 0.5 ** len(needed))
    for depth, own in enumerate(good):
        so_far = jnp.broadcast_to(so_far[..., None], own.shape)
        so_far = so_far & own if depth in needed else so_far
        # Each needed turn that is still to come is good with probability 1/2.
        later = sum(d > depth for d in needed)
        value = base + effect * so_far.astype(jnp.float32) * 0.5**later
        values.append(value)
        advantages.append(value - before[..., None])
        before = value
    if settled:
        # Below half the share wrong, below the share right, and above it open.
        kind = jax.random.uniform(jax.random.fold_in(key, len(branches)), (questions,))
        sure = jnp.where(kind < settled / 2, *SETTLED)
        for levels, known in ((values, sure), (advantages, jnp.zeros(questions))):
            for depth, level in enumerate(levels):
                wide = (-1, *[1] * (depth + 1))
                is_settled = (kind < settled).reshape(wide)
                levels[depth] = jnp.where(is_settled, known.reshape(wide), level)
    rewards = jax.random.bernoulli(last, values[-1]).astype(jnp.float32)
    return Planted(rewards, good, values, advantages)


def drawn(
    rewards: Float[np.ndarray, "Q *wide"], branches: Sequence[int], spare: int
) -> Float[np.ndarray, "Q *wide"]:
    """The leaves that adaptive branching would draw of a forest of WIDEST times `branches`.

    The others are NaN. As in a search, what a node is does not depend on the allocation.
    """
    sizes = first_pass(branches, spare)
    seen = rewards[(slice(None), *map(slice, sizes))].reshape(len(rewards), -1)
    variance = outcome_variance(seen.astype(np.float64))
    present = np.ones(len(rewards), bool)
    for depth, branch in enumerate(branches):
        siblings = np.zeros(present.shape, int)
        question, *_ = np.nonzero(present)
        siblings[present] = allocate(variance[question], sizes[depth], branch)
        present = np.arange(WIDEST * branch) < siblings[..., None]
    return np.where(present, rewards, np.nan)


def judged(key: Array, planted: Planted) -> list[Float[np.ndarray, "Q *_"]]:
    """The signal `verdict` of every level, if critiques say whether their drafts are right.

    A draft is right if it is good, and what a critique says of it is true with probability FITS.
    The signal is read from the texts, as in a search; it is NaN for turns that do not have it.
    """
    drafts, critiques = planted.good[:2]
    true = jax.random.bernoulli(key, jnp.where(critiques, FITS[1], FITS[0]))
    approves = np.asarray(true == drafts[..., None]).tolist()
    readers = {"verifier": cache(read_verdict)}
    levels: list[list[float]] = [[] for _ in planted.good]
    for right, said in zip(np.asarray(drafts).tolist(), approves, strict=True):
        tree = _spoken(right, said, planted.rewards.shape[-1])
        found = verdict_agreement(tree, readers)
        for level, nodes in zip(levels, tree.levels, strict=True):
            level += [found.get(node.id, math.nan) for node in nodes]
    shapes = [level.shape for level in planted.good]
    return [np.array(one).reshape(shape) for one, shape in zip(levels, shapes, strict=True)]


def heard(planted: Planted) -> Float[np.ndarray, "Q *branches"]:
    """The signal `influence` of every refinement, whose answer is one token: right or wrong.

    A refiner whose critique is left blank is right as often as after the draft's average critique.
    """
    rewards = np.asarray(planted.rewards)
    answers = rewards.astype(int).ravel().tolist()
    # P(right) of each leaf's critique, and of its draft.
    told = np.broadcast_to(planted.values[1][..., None], rewards.shape)
    blank = np.broadcast_to(planted.values[0][..., None, None], rewards.shape)
    stored = {
        str(i): math.log(p if right else 1 - p)
        for i, (p, right) in enumerate(zip(told.ravel().tolist(), answers, strict=True))
    }
    # Every distinct P(right) is a prompt.
    chances, prompts = np.unique(blank, return_inverse=True)
    asked = {
        str(i): ((prompt,), (right,))
        for i, (prompt, right) in enumerate(zip(prompts.ravel().tolist(), answers, strict=True))
    }

    def score(role: str, sequences: Sequences) -> np.ndarray:
        return np.log([chances[p] if right else 1 - chances[p] for (p,), (right,) in sequences])

    found = gains(stored, {"refiner": asked}, score)
    return np.array(list(found.values())).reshape(rewards.shape)


_turn = partial(
    Node, prompt="", prompt_ids=(), cut=0, token_ids=(), logprobs=(), finish="eos", completion="42"
)


def _spoken(right: Sequence[bool], approves: Sequence[Sequence[bool]], answers: int) -> Tree:
    """The tree of one question in which every critique says what it thinks of its draft."""
    drafts = [
        _turn(id=f"g{g}", role="generator", parent=None, correct=is_right)
        for g, is_right in enumerate(right)
    ]
    critiques = [
        _turn(id=f"g{g}/v{v}", role="verifier", parent=f"g{g}", completion=SAID[approve])
        for g, row in enumerate(approves)
        for v, approve in enumerate(row)
    ]
    refinements = [
        _turn(id=f"{above.id}/r{r}", role="refiner", parent=above.id, correct=False)
        for above in critiques
        for r in range(answers)
    ]
    branches = (len(right), len(approves[0]), answers)
    roles = ("generator", "verifier", "refiner")
    return Tree("q", "", "", {}, branches, roles, (*drafts, *critiques, *refinements))


@dataclass(frozen=True)
class Estimate:
    """How a signal estimates the true advantage of the nodes of a level."""

    credit: float
    """Mean signal of good turns minus that of bad ones, where the turn can matter."""
    leak: float
    """Mean signal after a good turn minus that after a bad one: credit for what came before."""
    bias: float
    """Mean error of the difference between a good and a bad turn."""
    deviation: float
    """Standard deviation of the signal around the true advantage."""


def estimate(signal: Float[Array, "Q *_"], planted: Planted, depth: int) -> Estimate:
    """Compares a signal of the nodes at a depth (0 is the drafts') with what was planted."""
    good, true = planted.good[depth], planted.advantages[depth]
    credit = _difference(signal, good)
    leak = 0.0
    if depth:
        behind = jnp.broadcast_to(planted.good[depth - 1][..., None], signal.shape)
        # Among good and bad turns in equal numbers, so that the turn's own credit cancels.
        leak = (_difference(signal, behind, good) + _difference(signal, behind, ~good)) / 2
    return Estimate(
        credit=credit,
        leak=leak,
        bias=credit - _difference(true, good),
        deviation=float((signal - true).std()),
    )


def _difference(
    signal: Float[Array, "Q *_"],
    good: Bool[Array, "Q *_"],
    among: Bool[Array, "Q *_"] | None = None,
) -> float:
    among = jnp.ones_like(good) if among is None else among
    means = [jnp.mean(signal, where=among & kind) for kind in (good, ~good)]
    return float(means[0] - means[1])
