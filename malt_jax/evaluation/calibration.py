"""Do node values predict success?

A node's value is the mean reward beneath it, so comparing it with those same rewards would prove
nothing. Each child branch is therefore held out in turn: the mean value of the *other* branches is
the prediction, and the rewards of the held-out branch's leaves are the outcomes. On trees of
questions the pipeline was not trained on, this says how far a value can be trusted as a label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import stats

BINS = 5


def calibration(trees: Iterable[Mapping[str, Any]], bins: int = BINS) -> dict[str, Any]:
    """By role: AUC, Brier score and reliability bins of held-out-branch value predictions.

    Roles without children (the last) and nodes with a single child predict nothing and are left
    out. `brier_base` is the score of always predicting the role's mean reward; `auc` is None where
    all outcomes agree.
    """
    predicted: dict[str, list[float]] = defaultdict(list)
    observed: dict[str, list[float]] = defaultdict(list)
    for tree in trees:
        children = defaultdict(list)
        for node in tree["nodes"]:
            children[node["parent"]].append(node)
        for node in tree["nodes"]:
            branches = children[node["id"]]
            values = [branch["value"] for branch in branches]
            for held_out, branch in enumerate(branches if len(branches) > 1 else ()):
                others = values[:held_out] + values[held_out + 1 :]
                rewards = _rewards(branch, children)
                predicted[node["role"]] += [sum(others) / len(others)] * len(rewards)
                observed[node["role"]] += rewards
    return {
        role: _reliability(np.array(predicted[role]), np.array(observed[role]), bins)
        for role in predicted
    }


def _rewards(node: Mapping[str, Any], children: Mapping[str | None, list]) -> list[float]:
    """Rewards of the leaves beneath a node (its own, if it is one); the root's parent is None."""
    beneath = children[node["id"]]
    if not beneath:
        return [float(node["reward"])]
    return [reward for child in beneath for reward in _rewards(child, children)]


def _reliability(predicted: np.ndarray, observed: np.ndarray, bins: int) -> dict[str, Any]:
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    return {
        "outcomes": len(observed),
        "auc": auc(predicted, observed),
        "brier": float(np.mean((predicted - observed) ** 2)),
        "brier_base": float(np.mean((observed.mean() - observed) ** 2)),
        "bins": [
            {
                "low": index / bins,
                "high": (index + 1) / bins,
                "count": int((which == index).sum()),
                "predicted": float(predicted[which == index].mean()),
                "observed": float(observed[which == index].mean()),
            }
            for index in range(bins)
            if (which == index).any()
        ],
    }


def auc(predicted: np.ndarray, observed: np.ndarray) -> float | None:
    """Probability that a success was predicted above a failure, ties counting half.

    None when there are only successes or only failures.
    """
    successes = observed > 0.5
    positive, negative = int(successes.sum()), int((~successes).sum())
    if positive == 0 or negative == 0:
        return None
    ranks = stats.rankdata(predicted)
    return float((ranks[successes].sum() - positive * (positive + 1) / 2) / (positive * negative))
