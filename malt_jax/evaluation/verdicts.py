"""Verdicts: what a critique says about the answer it read, and how sure the model was of it."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from malt_jax.sampling.request import Completion


@dataclass(frozen=True)
class VerdictReader:
    """Finds the last word of a critique that calls the answer right or wrong."""

    right: Sequence[str]
    wrong: Sequence[str]

    def support(self, text: str, completion: Completion, tokenizer: Any) -> float | None:
        """How far a critique supports the answer it read, from 0 to 1; None without a verdict.

        With `p` the probability of the verdict's tokens: (1 + p) / 2 if it is that the answer is
        right, else (1 - p) / 2, so that a verdict the model was unsure of counts for little.
        """
        # Longer phrases first: `not correct` is a verdict of its own, and not `correct`.
        phrases = sorted({*self.right, *self.wrong}, key=len, reverse=True)
        if not phrases:
            return None
        found = list(re.finditer("|".join(map(_pattern, phrases)), text, re.IGNORECASE))
        if not found:
            return None
        last = found[-1]
        is_right = last[0].casefold() in {phrase.casefold() for phrase in self.right}
        probability = math.exp(_logprob(last.span(), completion, tokenizer))
        return round((1 + probability if is_right else 1 - probability) / 2, 6)


def _pattern(phrase: str) -> str:
    """Matches the phrase, but no part of a longer word."""
    begins, ends = (re.match(r"\w", edge) for edge in (phrase[0], phrase[-1]))
    return (r"(?<!\w)" if begins else "") + re.escape(phrase) + (r"(?!\w)" if ends else "")


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
