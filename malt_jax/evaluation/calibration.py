"""Calibration of node values: do they predict success?

The value of a node is the mean reward beneath it, so comparing it with those same rewards would
prove nothing. Each child branch is therefore held out in turn: the mean value of the other branches
is the prediction, and the rewards of the leaves of the held-out branch are the outcomes. On trees
of questions that the pipeline was not trained on, this says how far a value can be trusted as a
label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from jaxtyping import Real
from scipy import stats

from malt_jax.evaluation.schema import Reliability
from malt_jax.tree.node import Node, Tree

BINS = 5


def calibration(trees: Iterable[Tree], bins: int = BINS) -> dict[str, Reliability]:
    """AUC, Brier score and reliability bins of the held-out-branch predictions, by role.

    Roles without children (the last) and nodes with a single child predict nothing and are left
    out.
    """
    predicted: dict[str, list[float]] = defaultdict(list)
    observed: dict[str, list[float]] = defaultdict(list)
    for tree in trees:
        for node in tree.nodes:
            branches = tree.children.get(node.id, [])
            values = [branch.value for branch in branches]
            for held_out, branch in enumerate(branches if len(branches) > 1 else ()):
                others = values[:held_out] + values[held_out + 1 :]
                rewards = _rewards(tree, branch)
                # One prediction per leaf and not per branch: a leaf's reward is one outcome.
                predicted[node.role] += [sum(others) / len(others)] * len(rewards)
                observed[node.role] += rewards
    return {
        role: _reliability(np.array(predicted[role]), np.array(observed[role]), bins)
        for role in predicted
    }


def _rewards(tree: Tree, node: Node) -> list[float]:
    """Rewards of the leaves beneath a node, or its own if it is a leaf."""
    if node.reward is not None:
        return [node.reward]
    return [reward for child in tree.children[node.id] for reward in _rewards(tree, child)]


def _reliability(
    predicted: Real[np.ndarray, " N"], observed: Real[np.ndarray, " N"], bins: int
) -> Reliability:
    """Scores of N predictions in [0, 1] of outcomes in [0, 1]."""
    # A prediction of exactly 1 belongs to the last bin.
    bin_of = np.minimum((predicted * bins).astype(int), bins - 1)
    return {
        "outcomes": len(observed),
        "auc": auc(predicted, observed),
        "brier": float(np.mean((predicted - observed) ** 2)),
        "brier_base": float(np.mean((observed.mean() - observed) ** 2)),
        "bins": [
            {
                "low": index / bins,
                "high": (index + 1) / bins,
                "count": int((bin_of == index).sum()),
                "predicted": float(predicted[bin_of == index].mean()),
                "observed": float(observed[bin_of == index].mean()),
            }
            for index in range(bins)
            if (bin_of == index).any()
        ],
    }


def auc(predicted: Real[np.ndarray, " N"], observed: Real[np.ndarray, " N"]) -> float | None:
    """Probability that a success was predicted above a failure, where ties count half.

    A success is an outcome above the middle of those observed, since rewards may be partial. None
    if all are alike.
    """
    successes = observed > (observed.min(initial=1.0) + observed.max(initial=0.0)) / 2
    positive, negative = int(successes.sum()), int((~successes).sum())
    if positive == 0 or negative == 0:
        return None
    # The Mann-Whitney U statistic of the successes, as a share of all pairs.
    # Tied values get the mean of their ranks, so that a tie counts half.
    ranks = stats.rankdata(predicted)
    return float((ranks[successes].sum() - positive * (positive + 1) / 2) / (positive * negative))
