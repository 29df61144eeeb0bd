"""Further measures of the same draws: pass@k, votes weighted by critiques, and equal tokens.

None of them needs a model call: all are read from the records of an evaluation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.statistics import Vote

Drawn = Sequence[Sequence[DrawRecord]]
"""The draws of each unit (a question under a seed), all of them equally many."""


def pass_at_k(drawn: Drawn, k: int) -> float:
    """Mean probability that one of `k` draws without replacement is right.

    The unbiased estimate `1 - C(n - c, k) / C(n, k)` of Chen et al. (arXiv 2107.03374, eq. 1) over
    all `n` draws of a question, of which `c` are right.
    """
    total = 0.0
    for records in drawn:
        n, wrong = len(records), sum(not record.correct for record in records)
        # As a product, in which no binomial coefficient can overflow.
        failing = np.prod([(wrong - i) / (n - i) for i in range(k)]) if wrong >= k else 0.0
        total += 1.0 - float(failing)
    return total / len(drawn)


def draw_weight(record: DrawRecord) -> float:
    """How far the critique in a draw supports the draw's answer, from 0 to 1; 0.5 without one.

    The last critique with a verdict judges the last answer before it. If the draw's own answer is
    that one, the support for it counts; if the draw answers otherwise, what is left to 1.
    """
    weight, judged = 0.5, None
    for turn in record.turns:
        if turn.support is not None and judged is not None:
            weight = turn.support if judged == record.prediction else 1 - turn.support
        if turn.correct is not None:
            judged = turn.parsed
    return weight


def weighted_vote(predictions: Sequence[str | None], weights: Sequence[float]) -> Vote:
    """The answer with the largest sum of weights; among equal sums, the one drawn first."""
    sums: dict[str, float] = defaultdict(float)
    for prediction, weight in zip(predictions, weights, strict=True):
        if prediction is not None:
            sums[prediction] += weight
    if not sums:
        return Vote(None, 0, False)
    most = max(sums.values())
    # Sums of floats that are equal in exact arithmetic may differ in the last digit.
    winners = [answer for answer, total in sums.items() if total > most - 1e-9]
    return Vote(winners[0], predictions.index(winners[0]), len(winners) > 1)


def weighted_outcomes(drawn: Drawn) -> list[bool]:
    """Whether each unit's vote weighted by critiques is right; empty if no critique counts."""
    if not any(turn.support is not None for d in drawn for record in d for turn in record.turns):
        return []
    correct = []
    for records in drawn:
        weights = [draw_weight(record) for record in records]
        vote = weighted_vote([record.prediction for record in records], weights)
        correct.append(records[vote.draw].correct)
    return correct


def tokens_by_votes(drawn: Drawn) -> list[float]:
    """Generated tokens per question of the first 1, 2, ... draws.

    Draws that some questions leave out are estimated by the mean of those that all of them have,
    because the others are of the questions that are harder to agree on.
    """
    common = min(sum(bool(record.turns) for record in records) for records in drawn)
    tokens = np.array([[r.tokens for r in records[:common]] for records in drawn], np.float64)
    known = np.cumsum(tokens, axis=1).mean(axis=0)
    votes = range(common + 1, len(drawn[0]) + 1)
    return [*known.tolist(), *(float(known[-1]) * k / common for k in votes)]


def votes_for_tokens(by_votes: Sequence[float], tokens: float) -> int:
    """The fewest votes that generate at least so many tokens per question, or all there are."""
    return next((k for k, had in enumerate(by_votes, start=1) if had >= tokens), len(by_votes))


def frontier(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of the points `(cost, accuracy)` that no cheaper or equal one beats."""
    best, kept = -1.0, set()
    for name, (_, accuracy) in sorted(points.items(), key=lambda p: (p[1][0], -p[1][1])):
        if accuracy > best:
            best = accuracy
            kept.add(name)
    return kept
