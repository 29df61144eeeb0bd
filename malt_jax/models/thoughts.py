"""Thoughts: what a model writes before its answer, and the tokens that begin and end them.

Qwen3 and the R1-distilled models write `<think>...</think>` before the answer. gpt-oss writes
messages in channels, of which the one called `final` is the answer. The chat template shows which
of these a model was trained on.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

PAIRS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""Tokens that begin and end a thought: of Qwen3, R1, SmolLM3 and others, and of Magistral."""
CHANNEL, FINAL = "<|channel|>", "<|channel|>final<|message|>"
"""What begins a channel's name (gpt-oss), and what begins the answer there."""
MESSAGE, BREAKS = "<|message|>", (CHANNEL, "<|start|>", "<|end|>")
"""What ends a message's header there, and what stands between the text of two messages."""
FINAL_HEADER = re.compile(r"\s*final(?!\w)")
"""A header's text after `<|channel|>`, where the message is the answer."""
WRAPPER = ("<response>", "</response>")
"""Around the answer after a thought, where the template asks for it (Granite 3.3)."""

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
    wrapper: tuple[str, str] | None = None
    """Texts around the answer that belong to neither (`WRAPPER`)."""

    def split(self, ids: Sequence[int]) -> tuple[int, bool]:
        """How many tokens the thought takes, and whether it was closed.

        It ends at the last end marker, whatever stands before: a model may think again, or go on
        after its thought was closed in its place. A completion whose last thought never ends is one
        thought. One without any thought gives (0, True), and so does one that begins with an end
        marker which nothing has opened.
        """
        end = max(self._ends(ids), default=None)
        if self.begin in ids[end or 0 :] or (end is None and self.inside):
            return len(ids), False
        if end is None:
            return 0, True
        nothing = all(token in self.blank for token in ids[: end - len(self.end)])
        return (0 if nothing and not self.inside else end), True

    def answer_start(self, ids: Sequence[int]) -> int | None:
        """The first place where an answer may begin; None while there is none yet.

        While a completion grows it never moves. So a stop text is found at the same token however
        many come at once; `split` knows the whole completion, and may find a later end.
        """
        if not self.inside:
            first = next((token for token in ids if token not in self.blank), None)
            if first is None:
                return None
            if first != self.begin:
                return 0
        return next(self._ends(ids), None)

    def answer_end(self, ids: Sequence[int], start: int) -> int:
        """Where the answer that begins at `start` ends: with the completion."""
        return len(ids)

    def _ends(self, ids: Sequence[int]) -> Iterator[int]:
        """The places after each end marker, one after the other."""
        size = len(self.end)
        for place in range(len(ids) - size + 1):
            if tuple(ids[place : place + size]) == self.end:
                yield place + size


@dataclass(frozen=True, kw_only=True)
class ChannelThoughts(ThoughtFormat):
    """Messages in channels (gpt-oss): the last one in the channel `final` is the answer.

    A message's header may say more than its channel: `final <|constrain|>json<|message|>`.
    """

    message: int
    """The token that ends a header."""
    breaks: frozenset[int]
    """Tokens that stand between messages or begin a header, and so end the answer."""
    decode: Callable[[Sequence[int]], str] = field(compare=False, repr=False)

    def split(self, ids: Sequence[int]) -> tuple[int, bool]:
        """As `ThoughtFormat.split`; what follows the answer's message is no thought."""
        end = max(self._ends(ids), default=None)
        if end is not None:
            return end, True
        first = next((token for token in ids if token not in self.blank), None)
        begun = self.inside or first == self.begin
        return (len(ids), False) if begun else (0, True)

    def answer_end(self, ids: Sequence[int], start: int) -> int:
        """Where the message that begins at `start` ends."""
        ends = (i for i in range(start, len(ids)) if ids[i] in self.breaks)
        return next(ends, len(ids))

    def _ends(self, ids: Sequence[int]) -> Iterator[int]:
        opened: int | None = None  # the place after the last `<|channel|>`, within its header
        for place, token in enumerate(ids):
            if token == self.message and opened is not None:
                if FINAL_HEADER.match(self.decode(ids[opened:place])):
                    yield place + 1
                opened = None
            elif token in self.breaks:
                opened = place + 1 if token == self.begin else None


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
    wrapper: tuple[str, str] | None = None
    """As in `ThoughtFormat`."""

    def split(self, ids: Sequence[int]) -> tuple[int, bool]:
        """As `ThoughtFormat.split`; the last token of a thought may hold more than its marker."""
        text = self.decode(ids)
        begin, end = text.rfind(self.begin), text.rfind(self.end)
        if begin > end or (end < 0 and self.inside):
            return len(ids), False
        if end < 0 or not (self.inside or text[:end].strip()):
            return 0, True
        return self._place(ids, text.count(self.end)), True

    def answer_start(self, ids: Sequence[int]) -> int | None:
        """As `ThoughtFormat.answer_start`."""
        text = self.decode(ids)
        if not self.inside:
            head = text.lstrip()
            if self.begin.startswith(head):
                return None
            if not head.startswith(self.begin):
                return 0
        return self._place(ids, 1) if self.end in text else None

    def answer_end(self, ids: Sequence[int], start: int) -> int:
        """As `ThoughtFormat.answer_end`."""
        return len(ids)

    def _place(self, ids: Sequence[int], count: int) -> int:
        """The place after the token with which so many end markers are complete."""
        places = range(len(ids))
        return bisect_left(places, count, key=lambda n: self.decode(ids[:n]).count(self.end))


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
    if CHANNEL in template and {CHANNEL, MESSAGE} <= vocabulary.keys():
        # Whatever comes before the channel `final` is a thought, calls of tools included.
        closing = f"<|end|><|start|>assistant{FINAL}"
        inside = FINAL not in prompt_end()
        final, blank = tuple(encode(FINAL)), _blank(vocabulary)
        breaks = frozenset(vocabulary[text] for text in BREAKS if text in vocabulary)
        return ChannelThoughts(
            vocabulary[CHANNEL], final, closing, inside, blank,
            message=vocabulary[MESSAGE], breaks=breaks, decode=decode,
        )  # fmt: skip
    wrapper = WRAPPER if all(text in template for text in WRAPPER) else None
    for first, last in PAIRS:
        tokens = {first, last} <= vocabulary.keys()
        # Either marker may stand alone: some templates only cut earlier thoughts off, some only
        # open one. For a model without thoughts nothing changes: its completions begin with none.
        if last not in template and first not in template:
            continue
        written = prompt_end()
        inside = written.rfind(first) > written.rfind(last)
        if not tokens:
            return WrittenThoughts(first, last, inside, decode, wrapper)
        begin, end = vocabulary[first], vocabulary[last]
        closing = f"\n{last}\n\n"
        return ThoughtFormat(begin, (end,), closing, inside, _blank(vocabulary), wrapper)
    return None


def _blank(vocabulary: Mapping[str, int]) -> frozenset[int]:
    return frozenset(i for text, i in vocabulary.items() if WHITE_SPACE.fullmatch(text))
