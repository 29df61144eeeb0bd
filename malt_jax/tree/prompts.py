"""Prompts: a role's template filled with the question and earlier turns, as token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from malt_jax.errors import UserError

Overflow = Literal["refuse", "truncate"]
"""Whether a prompt that does not fit the context is refused or shortened."""

# Not `str.format`, which fails at braces of other kinds, as LaTeX and JSON have them.
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})*$")
_MISWRITTEN = re.compile(
    r"\{(?:\{\s*|\s+)([A-Za-z_][A-Za-z0-9_]*)\s*\}|\{([A-Za-z_][A-Za-z0-9_]*)\s+\}"
)


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
    """Names in braces, in order; `{question}`, `{previous}` and earlier roles are replaced.

    The arguments of LaTeX's commands, as in `\\text{cm}`, are none.
    """
    return [
        found[1]
        for found in _PLACEHOLDER.finditer(template)
        if not _COMMAND.search(template[max(0, found.start() - 100) : found.start()])
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
    turns = dict(turns)
    cut = 0
    # Decoding a cut turn and encoding it again may not shorten the prompt by exactly `drop` tokens,
    # so turns are cut until the prompt fits.
    while True:
        # Looked up in each pass, because the last turn may be the one that was cut.
        previous = next(reversed(turns.values()), "")
        text = fill(
            template, {**turns, "previous": previous, "question": question, **(extra or {})}
        )
        ids = tuple(tokenizer.prompt_ids(text))
        if len(ids) <= room:
            return Prompt(text, ids, cut)
        # Lengths of the turns alone; within the prompt, tokens may join across their borders.
        lengths = {name: len(tokenizer.encode(turn)) for name, turn in turns.items()}
        # Of equally long turns the earliest is cut.
        longest = max(lengths, key=lengths.get, default=None)  # type: ignore[arg-type]
        if overflow == "refuse" or longest is None or lengths[longest] <= 1:
            if room <= 0:
                raise UserError(
                    f"{where}: max_new_tokens fills the model's whole context, {-room} tokens more "
                    "than there are, and leaves none for the prompt; lower it."
                )
            way_out = (
                "or set --pipeline.overflow truncate"
                if any(turns.values())
                else "or leave the question out"
            )
            raise UserError(
                f"{where}: the prompt has {len(ids)} tokens and {room} fit beside the completion; "
                f"lower max_new_tokens, {way_out}."
            )
        # At least one token is cut in each pass, and at least one of the turn is left.
        drop = min(max(len(ids) - room, 1), lengths[longest] - 1)
        turns[longest] = tokenizer.decode(tokenizer.encode(turns[longest])[drop:])
        cut += drop
