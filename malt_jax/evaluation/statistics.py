"""Intervals, tests and votes for systems that are measured on the same questions.

Every comparison is paired: two systems answer the same questions, and only the questions on which
they differ carry information. Where several seeds are pooled, a question is one cluster, because
its answers under different seeds are not independent: intervals resample whole questions, and the
test flips the signs of whole questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from malt_jax.evaluation.schema import McNemar

RESAMPLES = 10_000


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, 1927); (0, 1) without any trial."""
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, "wilson")
    return float(interval.low), float(interval.high)


def exact_mcnemar(wrong_to_right: int, right_to_wrong: int) -> float:
    """Two-sided exact McNemar p-value: under the null hypothesis a change is a fair coin."""
    changed = wrong_to_right + right_to_wrong
    if changed == 0:
        return 1.0
    return float(stats.binomtest(wrong_to_right, changed, 0.5).pvalue)


def clustered_mcnemar(differences: Sequence[int] | np.ndarray) -> float:
    """Two-sided exact sign-flip p-value of the summed differences, one entry per question.

    `differences[q]` is the number of seeds that turned question `q` from wrong to right, less the
    number that turned it from right to wrong. Under the null hypothesis each question's difference
    is as likely to have the opposite sign. With one seed this is the exact McNemar test.
    """
    differences = np.asarray(differences, dtype=np.int64)
    sizes = Counter(abs(differences[differences != 0]).tolist())
    # The null distribution of the sum. The `count` questions whose difference is +-size contribute
    # size * (2 * heads - count) with binomial heads: a binomial density with a step of 2 * size.
    # Contributions of different sizes are independent, so their densities are convolved.
    density = np.ones(1)
    for size, count in sizes.items():
        spread = np.zeros(2 * size * count + 1)
        spread[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        density = np.convolve(density, spread)
    reach = len(density) // 2
    sums = np.arange(-reach, reach + 1)
    tail = density[abs(sums) >= abs(int(differences.sum()))].sum()
    # Rounding can bring the sum of a whole density slightly above 1.
    return float(min(1.0, tail))


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray,
    weights: Sequence[int] | np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `sum(differences) / sum(weights)` over questions.

    A question's difference is summed over its `weights[q]` seeds (by default 1 each), and whole
    questions are resampled. Where all are alike, every resample says the same, though few questions
    prove little: then the interval goes as far as Wilson's of 0 in so many. Raises ValueError
    without questions.
    """
    differences = np.asarray(differences, dtype=np.float64)
    weights = np.ones(len(differences)) if weights is None else np.asarray(weights, np.float64)
    if len(differences) == 0 or differences.shape != weights.shape:
        raise ValueError(f"{len(differences)} differences with {len(weights)} weights")
    # Questions with the same difference and weight are interchangeable, so a resample is one
    # multinomial draw over the kinds that occur. This has the distribution of drawing questions one
    # by one, at a cost that does not grow with their number.
    kinds, counts = np.unique(np.stack([differences, weights]), axis=1, return_counts=True)
    if np.ptp(kinds[0] / kinds[1]) == 0:
        mean = float(differences.sum() / weights.sum())
        margin = wilson_interval(0, len(differences), confidence)[1]
        return max(-1.0, mean - margin), min(1.0, mean + margin)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(differences), counts / counts.sum(), size=resamples)
    means = (drawn @ kinds[0]) / (drawn @ kinds[1])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of tests, in the order given (S. Holm, 1979)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        # A corrected value is never below that of a smaller p, hence the running maximum.
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


@dataclass(frozen=True)
class Vote:
    """The outcome of a majority vote."""

    answer: str | None
    """The winning answer; None if no draw could be parsed."""
    draw: int
    """The earliest draw that gave it (0 if none could be parsed)."""
    tie: bool
    """Whether another answer had as many votes."""


def majority_vote(predictions: Sequence[str | None]) -> Vote:
    """The most frequent answer; among equally frequent ones, the one drawn first.

    An answer that could not be parsed (None) has no vote. Raises ValueError without predictions.
    """
    if not predictions:
        raise ValueError("a vote needs at least one prediction")
    counts = Counter(answer for answer in predictions if answer is not None)
    if not counts:
        return Vote(None, 0, False)
    most = max(counts.values())
    winners = [answer for answer, count in counts.items() if count == most]
    # A Counter keeps the order of first appearance, so the first winner is the earliest draw's.
    return Vote(winners[0], predictions.index(winners[0]), len(winners) > 1)


def draws_to_certainty(predictions: Sequence[str | None], draws: int) -> int:
    """The fewest further draws after which the majority of all `draws` may be certain.

    0 if it is certain already, or if all are drawn. Certain is a majority, and that of every
    smaller number of draws too, that stays whatever the draws to come say.
    """
    counts = Counter(answer for answer in predictions if answer is not None)
    first, second = [*(count for _, count in counts.most_common(2)), 0, 0][:2]
    left = draws - len(predictions)
    # All that is left may go to the second answer, or to a new one; if j more go to the first, it
    # needs first + j > second + (left - j).
    return min(left, max(0, (second + left - first) // 2 + 1))


@dataclass(frozen=True)
class Flips:
    """How many answers changed from the first system or turn to the second."""

    wrong_to_right: int
    right_to_wrong: int


def flips(before: Sequence[bool] | np.ndarray, after: Sequence[bool] | np.ndarray) -> Flips:
    """Counts the changes between two gradings of the same questions, in the same order."""
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} gradings before, {after.shape} after")
    return Flips(int((~before & after).sum()), int((before & ~after).sum()))


def mcnemar(before: Sequence[bool] | np.ndarray, after: Sequence[bool] | np.ndarray) -> McNemar:
    """The changes between two gradings of the same questions, with their exact p-value."""
    changed = flips(before, after)
    return {
        "wrong_to_right": changed.wrong_to_right,
        "right_to_wrong": changed.right_to_wrong,
        "p": exact_mcnemar(changed.wrong_to_right, changed.right_to_wrong),
    }
