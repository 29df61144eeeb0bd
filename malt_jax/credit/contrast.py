"""Contrast: what the trees of a search can teach each role, known before anything is trained.

A role learns from the differences between its turns. Where siblings have one value, the value says
what came before them and nothing about them. Where they differ it may be luck, for what follows a
turn is sampled: so beside each share stands the one that is expected of turns that change nothing,
found by dealing the child branches of a prefix to its siblings anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict
from zlib import crc32

import numpy as np

from malt_jax.credit.signals import Signals
from malt_jax.credit.verdict import judged_answers
from malt_jax.tree.node import EQUAL, Node, Tree

RARE = 0.05
"""Contrast in a smaller share of prefixes, beyond that by chance, is called out."""
DEALS = 100
"""How often the child branches of a prefix are dealt to its siblings."""
MOST = 0.75
"""From this share of positives after right answers on, they mostly say what came before."""


class RoleContrast(TypedDict):
    """One role's part of a forest. A share is None where there is nothing to take it of.

    The answer before a turn is that of the latest earlier turn that states one: the draft of the
    published chain.

    Shares of prefixes and of positives say what training finds, so each of them counts alike. What
    says how a policy behaves is a mean over turns, each with its weight in the tree
    (`Tree.weights`): adaptive branching draws more turns of questions whose outcomes differ, and
    these must not count for more.
    """

    prefixes: int
    contrast: float | None
    """Share of prefixes whose siblings have both labels."""
    contrast_by_chance: float | None
    """The same share if the role's turns changed nothing; None for leaves, which have no branches
    to exchange, for turns with a single branch each, which exchange nothing but their names, and
    for values that are not the mean of those below."""
    differing: float | None
    """Share of prefixes whose siblings have different values, on whatever side of theta."""
    differing_by_chance: float | None
    """The same share if the role's turns changed nothing."""
    right_after_wrong: float | None
    """Of the paths through turns after a wrong answer, the share that ends right: P(right | wrong
    draft)."""
    wrong_after_right: float | None
    """Of those through turns after a right answer, the share that ends wrong."""
    after_right: float | None
    """Share of all turns that are after a right answer; it counts as the positives do."""
    positives: int
    positives_after_right: float | None
    """Share of the positives (V > theta) that are after a right answer."""
    verdict: float | None
    """Share of the verdicts that fit the answer they judge."""
    verdict_if_approving: float | None
    """Share of them that would fit if every verdict approved."""
    verdicts: float | None
    """Share of the turns that hold a readable verdict."""
    influence: float | None
    """Mean influence of the turn before, in nats per token."""
    divergence: float | None
    """Mean log-ratio to the policy that training started from, in nats per token: its KL."""
    tokens: float | None
    """Mean length of a turn."""
    cut: float | None
    """Share of the turns that were cut at their length limit."""
    unread: float | None
    """Share of the answering turns whose answer cannot be read."""


@dataclass
class Contrast:
    """Collects what a forest holds for every role, tree by tree."""

    threshold: float = 0.5
    """Theta, by which the trees are labelled."""
    sums: dict[str, defaultdict[str, float]] = field(default_factory=dict)

    def add(self, tree: Tree, signals: Signals | None = None) -> None:
        """Counts one valued tree; `signals` gives verdicts and influence, where they are known."""
        judged, right = judged_answers(tree), _right_below(tree)
        for role in tree.roles:
            self.sums.setdefault(role, defaultdict(float))
        for siblings in tree.children.values():
            count = self.sums[siblings[0].role]
            values = [node.value for node in siblings]
            count["prefixes"] += 1
            count["contrast"] += len({node.label for node in siblings}) > 1
            count["differing"] += max(values) - min(values) > EQUAL
            if (chance := _by_chance(tree, siblings, self.threshold)) is not None:
                count["dealt"] += 1
                count["contrast by chance"] += chance[0]
                count["differing by chance"] += chance[1]
            for node in siblings:
                weight = tree.weights[node.id]
                count["turns"] += 1
                count["positives"] += node.label
                count["weight"] += weight
                count["tokens"] += weight * len(node.token_ids)
                count["cut"] += weight * (node.finish == "length")
                if node.correct is not None:
                    count["answering"] += weight
                    count["unread"] += weight * (node.parsed is None)
                if before := judged[node.id]:
                    kind = "right" if before.correct else "wrong"
                    count["turns after an answer"] += 1
                    count["turns after right"] += bool(before.correct)
                    count["positives after right"] += node.label and bool(before.correct)
                    count[f"after {kind}"] += weight
                    count[f"right in the end after {kind}"] += weight * right[node.id]
                for name, number in (signals or {}).get(node.id, {}).items():
                    if name in ("verdict", "influence", "divergence"):
                        count[f"with {name}"] += weight
                        count[name] += weight * number
                        if name == "verdict" and before:
                            count["verdicts on right"] += weight * bool(before.correct)

    def roles(self) -> dict[str, RoleContrast]:
        """The shares of every role, in the order of the chain."""
        return {role: _shares(count) for role, count in self.sums.items()}


def contrast(
    trees: Iterable[Tree], signals: Signals | None = None, threshold: float = 0.5
) -> dict[str, RoleContrast]:
    """What the trees hold for every role."""
    collected = Contrast(threshold)
    for tree in trees:
        collected.add(tree, signals)
    return collected.roles()


def _right_below(tree: Tree) -> dict[str, float]:
    """By node id, the share of its leaves that are right, its children counting alike.

    The value says the same only where rewards are 0 and 1 and are backed up by their mean.
    """
    right: dict[str, float] = {}
    for node in reversed(tree.nodes):  # children come after their parents
        below = [right[child.id] for child in tree.children.get(node.id, ())]
        right[node.id] = sum(below) / len(below) if below else float(bool(node.correct))
    return right


def _by_chance(tree: Tree, siblings: Sequence[Node], threshold: float) -> list[float] | None:
    """How often siblings would have both labels, and different values, if they changed nothing.

    Then any of the prefix's child branches could as well have followed any sibling. Whole branches
    are dealt and not leaves, because the leaves of a branch are alike for what that branch said.
    """
    if siblings[0].reward is not None:
        return None
    below = [[child.value for child in tree.children[node.id]] for node in siblings]
    values = np.array([node.value for node in siblings])
    sizes = np.array(list(map(len, below)))
    if sizes.max() == 1:
        return None
    starts = np.cumsum(sizes) - sizes
    branches = np.concatenate(below)
    if np.abs(np.add.reduceat(branches, starts) / sizes - values).max() > EQUAL:
        return None  # backed up by another rule than the mean
    # The same numbers whenever these trees are read, in whatever order.
    rng = np.random.default_rng(crc32(siblings[0].id.encode()))
    dealt = rng.permuted(np.tile(branches, (DEALS, 1)), axis=1)
    means = np.add.reduceat(dealt, starts, axis=1) / sizes
    # Values are rounded, so a tie with theta may be off by a rounding.
    positive = (means > threshold + EQUAL).sum(axis=1)
    both = (positive > 0) & (positive < len(siblings))
    return [float(both.mean()), float((np.ptp(means, axis=1) > EQUAL).mean())]


def _shares(count: Mapping[str, float]) -> RoleContrast:
    def share(part: str, whole: str) -> float | None:
        return round(count[part] / count[whole], 6) if count[whole] else None

    counted = "turns" if count["turns after an answer"] else "none"
    right = share("right in the end after right", "after right")
    return RoleContrast(
        prefixes=int(count["prefixes"]),
        contrast=share("contrast", "prefixes"),
        contrast_by_chance=share("contrast by chance", "dealt"),
        differing=share("differing", "prefixes"),
        differing_by_chance=share("differing by chance", "dealt"),
        right_after_wrong=share("right in the end after wrong", "after wrong"),
        wrong_after_right=None if right is None else round(1 - right, 6),
        after_right=share("turns after right", counted),
        positives=int(count["positives"]),
        positives_after_right=share(
            "positives after right", "positives" if counted == "turns" else "none"
        ),
        verdict=share("verdict", "with verdict"),
        verdict_if_approving=share("verdicts on right", "with verdict"),
        verdicts=share("with verdict", "weight") if count["with verdict"] else None,
        influence=share("influence", "with influence"),
        divergence=share("divergence", "with divergence"),
        tokens=share("tokens", "weight"),
        cut=share("cut", "weight"),
        unread=share("unread", "answering"),
    )


def advice(found: Mapping[str, RoleContrast]) -> list[str]:
    """One or two sentences per role: what training on these trees can teach it, and what not."""
    return [f"{role}: {_sentence(one)}" for role, one in found.items()]


def _sentence(one: RoleContrast) -> str:
    contrast, differing = one["contrast"] or 0.0, one["differing"] or 0.0
    chance = one["contrast_by_chance"]
    excess = contrast - (chance or 0.0)
    parts: Sequence[str]
    if not differing:
        return (
            "its siblings never differ in value, so nothing tells a good turn from a bad one. Draw "
            "more branches, at a higher temperature, or questions that are right now and then."
        )
    parts = [
        f"siblings disagree at {contrast:.0%} of its prefixes"
        + ("" if chance is None else f", where {chance:.0%} are expected of turns without effect")
        + (", so there is little to learn its own turns from" if excess < RARE else "")
        + "."
    ]
    before, after = one["right_after_wrong"], one["wrong_after_right"]
    if before is not None and after is not None:
        parts.append(
            f"After a wrong answer {before:.0%} end right, after a right one {after:.0%} end wrong."
        )
    after, all_after = one["positives_after_right"], one["after_right"]
    if after is not None and all_after is not None and after >= max(MOST, all_after):
        parts.append(
            f"{after:.0%} of its positives follow a right answer, so V > theta teaches it "
            "mainly to let that stand; `data.positives: both` keeps the turns that did better than "
            "their siblings."
        )
    if (influence := one["influence"]) is not None:
        listens = "reads" if influence > 0.01 else "hardly reads"
        parts.append(f"It {listens} the turn before it ({influence:.3f} nats per token).")
    return " ".join(parts)
