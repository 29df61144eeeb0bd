"""Prompts: a role's template filled with the question and earlier turns, as token ids."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from malt_jax.errors import UserError
from malt_jax.escape import one_line

Overflow = Literal["refuse", "truncate"]
"""Whether a prompt that does not fit the context is refused or shortened."""

# Not `str.format`, which fails at braces of other kinds, as LaTeX and JSON have them.
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})*$")
_MISWRITTEN = re.compile(
    r"\{(?:\{\s*|\s+)([A-Za-z_][A-Za-z0-9_]*)\s*\}|\{([A-Za-z_][A-Za-z0-9_]*)\s+\}"
)


class TooLong(UserError):
    """A prompt that leaves its completion no room.

    `finding` is the message without its advice, for those who cannot change a run's config.
    """

    def __init__(self, finding: str, advice: str):
        super().__init__(f"{finding}; {advice}.")
        self.finding = one_line(finding)


@runtime_checkable
class PromptTokenizer(Protocol):
    """The part of `models.tokenizer.Tokenizer` that prompts need."""

    def prompt_ids(self, text: str) -> list[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its text, its token ids, and how many tokens were cut from its turns."""

    text: str
    ids: tuple[int, ...]
    cut: int = 0


def placeholders(template: str) -> list[str]:
    """Names in braces, in order; `{question}`, `{previous}` and earlier roles are replaced."""
    return _PLACEHOLDER.findall(template)


def unknown(template: str, known: Collection[str]) -> list[str]:
    """Names in braces that are none of these, except arguments of LaTeX, as in `\\text{cm}`."""
    return [
        found[1]
        for found in _PLACEHOLDER.finditer(template)
        if found[1] not in known
        and not _COMMAND.search(template[max(0, found.start() - 100) : found.start()])
    ]


def miswritten(template: str) -> list[str]:
    """Names in double braces, as in Jinja, or with blanks inside; these are not replaced."""
    return [first or second for first, second in _MISWRITTEN.findall(template)]


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with known names in braces replaced; braces inside values stay as they are."""
    return _PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), template)


def render(
    template: str,
    question: str,
    turns: Mapping[str, str],
    tokenizer: PromptTokenizer,
    *,
    room: int,
    overflow: Overflow = "refuse",
    where: str = "",
    extra: Mapping[str, str] | None = None,
) -> Prompt:
    """The prompt of one turn, of at most `room` tokens.

    `turns`: texts of the earlier turns by role, in order; `{previous}` is the last of them. A
    prompt that does not fit is refused by a UserError that names `where`. With `truncate` the
    longest earlier turn loses its beginning, because its conclusion is at the end, until the prompt
    fits, and the result counts the tokens cut. A question that is too long is always refused.
    """
    texts = {**turns, **(extra or {})}
    last = next(reversed(list(turns)), "")
    named = {last if name == "previous" else name for name in placeholders(template)}
    # What may be cut: turns that stand in the prompt, and those of the others in a debate.
    tokens = {
        name: tokenizer.encode(text)
        for name, text in (texts.items() if overflow == "truncate" else ())
        if name in named and text
    }
    dropped = dict.fromkeys(tokens, 0)
    # A cut text that is encoded again may not be shorter by exactly what was cut, so texts are cut
    # until the prompt fits: always from their own tokens, of which each pass leaves fewer.
    while True:
        values = {**texts, "previous": texts.get(last, ""), "question": question}
        text = fill(template, values)
        ids = tuple(tokenizer.prompt_ids(text))
        if len(ids) <= room:
            return Prompt(text, ids, sum(dropped.values()))
        left = {name: len(ids) - dropped[name] for name, ids in tokens.items()}
        # Of equally long texts the earliest is cut.
        longest = max(left, key=left.get, default=None)  # type: ignore[arg-type]
        if longest is None or left[longest] <= 1:
            if room <= 0:
                raise TooLong(
                    f"{where}: max_new_tokens fills the model's whole context, {-room} tokens more "
                    "than there are, and leaves none for the prompt",
                    "lower it",
                )
            way_out = (
                "or set --pipeline.overflow truncate"
                if overflow == "refuse" and any(texts.get(name) for name in named)
                else "or leave the question out"
            )
            raise TooLong(
                f"{where}: the prompt has {len(ids)} tokens and {room} fit beside the completion",
                f"lower max_new_tokens, {way_out}",
            )
        # At least one token is cut in each pass, and at least one of the text is left.
        dropped[longest] += min(max(len(ids) - room, 1), left[longest] - 1)
        # The cut may be within a character, of which nothing readable is left.
        texts[longest] = tokenizer.decode(tokens[longest][dropped[longest] :]).lstrip("\ufffd")
