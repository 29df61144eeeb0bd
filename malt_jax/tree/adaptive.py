"""Adaptive branching: at the same number of completions, more siblings where outcomes differ.

Every prefix begins with fewer siblings than its role's `branch`, the leaves are graded, and what
was held back goes to the questions of the block whose outcomes differ most. docs/method.md,
section 2, has the formulas. What a node says depends on its path alone, so an adaptive tree and a
fixed one have the same texts at common paths; only the number of siblings depends on the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from malt_jax.checks import check
from malt_jax.tree.expand import Prefix
from malt_jax.tree.node import WIDEST, Forest
from malt_jax.tree.roles import Chain

LEAST = 2
"""Siblings that every prefix has in the first pass, or `branch` if that is less: one alone would
not show whether outcomes differ."""


def grow(
    expand: Callable[..., Forest], grade: Callable[..., Forest], pipeline: Chain, spare: int
) -> Forest:
    """The graded trees of a block of questions, in two passes.

    `expand` and `grade` are those of the tree, their other arguments given. Of the `branch` of each
    role, `spare` is held back in the first pass. In the end each level has as many completions as
    in fixed trees, so each role makes as many calls.
    """
    sizes = first_pass(pipeline.branches, spare)
    first = grade(expand(siblings=lambda depth, prefixes: [sizes[depth]] * len(prefixes)))
    if not first.trees:
        return first
    outcomes = [[leaf.reward for leaf in tree.leaves] for tree in first.trees]
    # In float32, since that is what processes exchange: any number of them gives the same trees.
    rewards = np.array(outcomes, np.float32)
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        # All processes must make the same calls, though a grader with a time limit may not give
        # the same grade in each.
        rewards = np.asarray(broadcast_one_to_all(rewards))
    ids = [tree.question_id for tree in first.trees]
    spread = dict(zip(ids, outcome_variance(rewards.astype(np.float64)), strict=True))

    def siblings(depth: int, prefixes: Sequence[Prefix]) -> list[int]:
        variance = np.array([spread[prefix.question.id] for prefix in prefixes])
        return allocate(variance, sizes[depth], pipeline.branches[depth]).tolist()

    known = {node.id: node for tree in first.trees for node in tree.nodes}
    return grade(expand(known=known, siblings=siblings), known=known)


def first_pass(branches: Sequence[int], spare: int) -> tuple[int, ...]:
    """Siblings per prefix in the first pass, by depth."""
    check(spare >= 0, f"spare: found {spare}, allowed: 0 (off) or more.")
    return tuple(max(branch - spare, min(branch, LEAST)) for branch in branches)


def outcome_variance(rewards: Float[np.ndarray, "Q leaves"]) -> Float[np.ndarray, " Q"]:
    """The variance of the outcomes of each question.

    One pseudo-leaf with the moments of the block is added to each question, so that a few equal
    outcomes do not make a question certain, and half a right and half a wrong leaf to the block,
    which keeps every variance above 0. It is one number per question, because a prefix has too few
    leaves to tell its own variance from chance.
    """

    def moment(outcomes: Float[np.ndarray, "Q leaves"]) -> Float[np.ndarray, " Q"]:
        expected = (outcomes.sum() + 0.5) / (outcomes.size + 1)
        return (outcomes.sum(axis=1) + expected) / (outcomes.shape[1] + 1)

    return moment(rewards**2) - moment(rewards) ** 2


def allocate(variance: Float[np.ndarray, " P"], first: int, branch: int) -> Int[np.ndarray, " P"]:
    """How many siblings each of P prefixes of a level has: P times `branch` in all.

    A mean over n siblings has the variance v / n, so one more lowers it by v / (n (n + 1)). Each
    sibling that was held back goes where it lowers it most, to at most WIDEST times `branch` under
    one prefix, and at equal gains to the earlier prefix. Where all variances are equal, so are the
    numbers of siblings.
    """
    sizes = np.arange(first, WIDEST * branch)
    gain = variance[:, None] / (sizes * (sizes + 1))
    # Gains fall with n, so the best ones of a prefix are its first ones.
    best = np.argsort(-gain, axis=None, kind="stable")[: len(variance) * (branch - first)]
    return first + np.bincount(best // len(sizes), minlength=len(variance))
