"""Thoughts: what a model writes before its answer, and the tokens that begin and end them.

Qwen3 and the R1-distilled models write `<think>...</think>` before the answer. gpt-oss writes
messages in channels, of which the one called `final` is the answer. The chat template shows which
of these a model was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PAIRS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""Tokens that begin and end a thought: of Qwen3, R1, SmolLM3 and others, and of Magistral."""
CHANNEL, FINAL = "<|channel|>", "<|channel|>final<|message|>"
"""What begins a channel's name (gpt-oss), and what begins the answer there."""

WHITE_SPACE = re.compile(r"(?:[\sĠĊ▁]|<0x0A>|<0x20>)+")
"""A token of white space as vocabularies write it: by bytes, by SentencePiece, or as it is."""


@dataclass(frozen=True)
class ThoughtFormat:
    """How a model writes thoughts, after the prompts of one role."""

    begin: int
    """The token that begins a thought."""
    end: tuple[int, ...]
    """The tokens, in a row, that end it."""
    closing: str
    """Text with which a thought can be ended in the model's place."""
    inside: bool
    """The prompts end within a thought, so that completions begin within it."""

    blank: frozenset[int] = frozenset()
    """Tokens of white space, which may stand before the thought of a completion."""

    def split(self, ids: Sequence[int]) -> tuple[int, bool]:
        """How many tokens the thought at the beginning takes, and whether it was closed.

        A completion that never ends its thought is one thought. One that does not begin with a
        thought, apart from white space, has none: (0, True).
        """
        if not self.inside:
            first = next((token for token in ids if token not in self.blank), None)
            if first != self.begin:
                return 0, True
        size = len(self.end)
        for place in range(len(ids) - size + 1):
            if tuple(ids[place : place + size]) == self.end:
                return place + size, True
        return len(ids), False

    def answer_start(self, ids: Sequence[int]) -> int | None:
        """The place after the thought; None while the thought is open or may still begin."""
        count, closed = self.split(ids)
        undecided = not self.inside and all(token in self.blank for token in ids)
        return count if closed and not undecided else None


def find_format(
    template: str,
    vocabulary: Mapping[str, int],
    prompt_end: Callable[[], str],
    encode: Callable[[str], list[int]],
) -> ThoughtFormat | None:
    """The format that a chat template speaks of, if its markers are tokens of the vocabulary.

    `prompt_end` gives what the template writes after the user's message.
    """
    if CHANNEL in template and CHANNEL in vocabulary:
        # Whatever comes before the channel `final` is a thought, calls of tools included.
        closing = f"<|end|><|start|>assistant{FINAL}"
        inside = FINAL not in prompt_end()
        final, blank = tuple(encode(FINAL)), _blank(vocabulary)
        return ThoughtFormat(vocabulary[CHANNEL], final, closing, inside, blank)
    for first, last in PAIRS:
        if last in template and {first, last} <= vocabulary.keys():
            written = prompt_end()
            inside = written.rfind(first) > written.rfind(last)
            begin, end = vocabulary[first], vocabulary[last]
            return ThoughtFormat(begin, (end,), f"\n{last}\n\n", inside, _blank(vocabulary))
    return None


def _blank(vocabulary: Mapping[str, int]) -> frozenset[int]:
    return frozenset(i for text, i in vocabulary.items() if WHITE_SPACE.fullmatch(text))
