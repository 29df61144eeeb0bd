"""Verdicts: what a critique says about the answer it read, and how sure the model was of it."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from malt_jax.sampling.request import Completion

NEGATED = re.compile(
    r"(?:\w*n['\u2019]t|\bnot(?! only)|\bnever|\bcannot)(?:[^\w.,;:!?\n]+\w+){0,2}[^\w.,;:!?\n]+\Z",
    re.IGNORECASE,
)
"""A negation, and at most two words of the same clause between it and a verdict."""
REACH = 60
"""How many characters before a verdict are searched for a negation."""


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
        # Longer phrases first: `no mistake` is a verdict of its own, and not `mistake`.
        phrases = sorted({*self.right, *self.wrong}, key=len, reverse=True)
        if not phrases:
            return None
        found = list(re.finditer("|".join(map(_pattern, phrases)), text, re.IGNORECASE))
        if not found:
            return None
        last = found[-1]
        start, end = last.span()
        is_right = last[0].casefold() in {phrase.casefold() for phrase in self.right}
        before = max(0, start - REACH)
        if negation := NEGATED.search(text[before:start]):
            is_right, start = not is_right, before + negation.start()
        probability = math.exp(_logprob((start, end), completion, tokenizer))
        return round((1 + probability if is_right else 1 - probability) / 2, 6)


def _pattern(phrase: str) -> str:
    """Matches the phrase, but no part of a longer word, such as `right-hand`."""
    begins, ends = (re.match(r"\w", edge) for edge in (phrase[0], phrase[-1]))
    before, after = r"(?<!\w)(?<!\w-)" if begins else "", r"(?!\w)(?!-\w)" if ends else ""
    return before + re.escape(phrase) + after


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
