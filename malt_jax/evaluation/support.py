"""Support: how far a critique stands behind the answer it read, for votes weighted by verdicts."""

from __future__ import annotations

import bisect
import math
from typing import Any

from malt_jax.credit.verdict import Verdict
from malt_jax.sampling.request import Completion


def support(verdict: Verdict, completion: Completion, tokenizer: Any) -> float:
    """How far a critique supports the answer it read, from 0 to 1.

    With `p` the probability of the tokens that state the verdict: (1 + p) / 2 if it approves, else
    (1 - p) / 2, so that a verdict the model was unsure of counts for little. A verdict without a
    span counts in full.
    """
    sure = 1.0
    if verdict.span is not None:
        sure = math.exp(_logprob(verdict.span, completion, tokenizer))
    return round((1 + sure if verdict.approves else 1 - sure) / 2, 6)


def _logprob(span: tuple[int, int], completion: Completion, tokenizer: Any) -> float:
    """Log-probability of the tokens that write the characters of a span."""
    ids = [int(token) for token in completion.tokens]

    def length(count: int) -> int:
        """Characters that the first `count` tokens write; it only grows with `count`."""
        return len(tokenizer.decode(ids[:count]))

    counts = range(len(ids) + 1)
    start, end = span
    # The first token that reaches beyond the start, and the first that reaches the end.
    first = bisect.bisect_right(counts, start, key=length) - 1
    last = bisect.bisect_left(counts, end, key=length)
    return sum(map(float, completion.logprobs[first:last]))
