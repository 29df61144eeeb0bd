"""What the rows of a table are compared on: questions under seeds, and which are independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from malt_jax.evaluation import statistics
from malt_jax.evaluation.schema import Comparison

Unit = tuple[int, str]
"""A seed and a question id: what one row of the table answers once."""


@dataclass(frozen=True)
class Units:
    """All units in the one order that every row uses; U is their number."""

    pairs: Sequence[Unit]
    clusters: Mapping[str, str] = field(default_factory=dict)
    """Of questions that are not independent, such as those made from one template: the name of
    their cluster, by question id. The others stand alone."""

    @cached_property
    def seeds(self) -> Int[np.ndarray, " U"]:
        return np.array([seed for seed, _ in self.pairs])

    @cached_property
    def questions(self) -> list[str]:
        return [question for _, question in self.pairs]

    @property
    def pooled(self) -> bool:
        """Whether there are several seeds."""
        return len(np.unique(self.seeds)) > 1

    @cached_property
    def cluster(self) -> Int[np.ndarray, " U"]:
        """The number of each unit's cluster: its question's, or that of the question alone."""
        # A cluster may be named as a question is that belongs to none.
        names = [
            f"cluster {self.clusters[question]}"
            if question in self.clusters
            else f"alone {question}"
            for question in self.questions
        ]
        return np.unique(names, return_inverse=True)[1]

    @property
    def clustered(self) -> bool:
        """Whether some cluster has several units, which are then not independent."""
        return int(self.cluster.max()) + 1 < len(self.pairs)

    @cached_property
    def grouped(self) -> int:
        """The number of clusters, if some have several questions; lone questions count too."""
        clusters = {*zip(self.cluster.tolist(), self.questions, strict=True)}
        count = len({cluster for cluster, _ in clusters})
        return count if count < len(clusters) else 0

    def per_cluster(
        self, values: Int[np.ndarray, " U"]
    ) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
        """The sum of `values` and the number of units of each cluster."""
        # With weights `bincount` returns floats, though these are integers.
        sums = np.bincount(self.cluster, weights=values).round().astype(np.int64)
        return sums, np.bincount(self.cluster)


def compare(
    before: Bool[np.ndarray, " U"],
    after: Bool[np.ndarray, " U"],
    units: Units,
    confidence: float = 0.95,
) -> Comparison:
    """The paired comparison of two rows on the same units: flips, p-value, difference.

    Exact McNemar, or with clusters the sign-flip test over whole clusters; with several seeds
    besides it the pooled flips and each seed alone.
    """
    # Per cluster: the units for which only `after` is right, less those where only `before` is.
    sums, sizes = units.per_cluster(after.astype(int) - before.astype(int))
    interval = statistics.bootstrap_interval(sums, sizes, confidence=confidence)
    changed = statistics.mcnemar(before, after)
    test: Comparison = {
        **changed,
        "delta": float(after.mean() - before.mean()),
        "delta_interval": list(interval),
    }
    if units.clustered:
        test["p"] = statistics.clustered_mcnemar(sums)
    if units.pooled:
        test["p_pooled"] = changed["p"]
        test["seeds"] = {
            str(seed): statistics.mcnemar(before[units.seeds == seed], after[units.seeds == seed])
            for seed in np.unique(units.seeds)
        }
    return test
