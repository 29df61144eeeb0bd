"""Thoughts: what a model writes before its answer, and the tokens that begin and end them.

Qwen3 and the R1-distilled models write `<think>...</think>` before the answer. gpt-oss writes
messages in channels, of which the one called `final` is the answer. The chat template shows which
of these a model was trained on.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class WrittenThoughts:
    """Thoughts between markers that are ordinary text to the tokenizer (OLMo 3 Think, Granite 3.3).

    A marker has many spellings in tokens then: its last character may be one token with the line
    breaks after it. So the text of the tokens is searched, which no program on a device does.
    """

    begin: str
    end: str
    inside: bool
    """The prompts end within a thought, so that completions begin within it."""
    decode: Callable[[Sequence[int]], str] = field(compare=False, repr=False)

    def split(self, ids: Sequence[int]) -> tuple[int, bool]:
        """As `ThoughtFormat.split`; the last token of a thought may hold more than its marker."""
        text = self.decode(ids)
        if not self.inside and not text.lstrip().startswith(self.begin):
            return 0, True
        if self.end not in text:
            return len(ids), False
        lengths = range(len(ids))
        return bisect_left(lengths, True, key=lambda n: self.end in self.decode(ids[:n])), True

    def answer_start(self, ids: Sequence[int]) -> int | None:
        """As `ThoughtFormat.answer_start`."""
        count, closed = self.split(ids)
        undecided = not self.inside and self.begin.startswith(self.decode(ids).lstrip())
        return count if closed and not undecided else None


AnyThoughts = ThoughtFormat | WrittenThoughts


def find_format(
    template: str,
    vocabulary: Mapping[str, int],
    prompt_end: Callable[[], str],
    encode: Callable[[str], list[int]],
    decode: Callable[[Sequence[int]], str],
) -> AnyThoughts | None:
    """The format that a chat template speaks of.

    `prompt_end` gives what the template writes after the user's message.
    """
    if CHANNEL in template and CHANNEL in vocabulary:
        # Whatever comes before the channel `final` is a thought, calls of tools included.
        closing = f"<|end|><|start|>assistant{FINAL}"
        inside = FINAL not in prompt_end()
        final, blank = tuple(encode(FINAL)), _blank(vocabulary)
        return ThoughtFormat(vocabulary[CHANNEL], final, closing, inside, blank)
    for first, last in PAIRS:
        tokens = {first, last} <= vocabulary.keys()
        # Either marker may stand alone: some templates only cut earlier thoughts off, some only
        # open one. For a model without thoughts nothing changes: its completions begin with none.
        if last not in template and first not in template:
            continue
        written = prompt_end()
        inside = written.rfind(first) > written.rfind(last)
        if not tokens:
            return WrittenThoughts(first, last, inside, decode)
        begin, end = vocabulary[first], vocabulary[last]
        return ThoughtFormat(begin, (end,), f"\n{last}\n\n", inside, _blank(vocabulary))
    return None


def _blank(vocabulary: Mapping[str, int]) -> frozenset[int]:
    return frozenset(i for text, i in vocabulary.items() if WHITE_SPACE.fullmatch(text))
