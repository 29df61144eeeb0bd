"""Reading completions of thinking models: the thought at the beginning, and the answer after it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from malt_jax.models.thoughts import AnyThoughts, WrittenThoughts


class Said(NamedTuple):
    """A completion as it is read: the answer, and the thought before it."""

    text: str
    """What follows the thought, or all of it; empty for a thought that was never closed."""
    thought: str | None = None
    """The thought with the tokens around it as text; it and `text` make up the completion."""
    unclosed: bool = False
    """The completion ended within its thought, so it is no answer."""
    thought_tokens: int = 0


def read_completion(
    ids: Iterable[int], finish: str, tokenizer: Any, form: AnyThoughts | None
) -> Said:
    """Splits a completion into thought and answer, without its end token."""
    ids = [int(token) for token in ids]
    if ids and finish == "eos" and ids[-1] in tokenizer.end_ids:
        ids = ids[:-1]
    count, closed = (0, True) if form is None else form.split(ids)
    if not count:
        return Said(tokenizer.decode(ids))
    # Blanks between thought and answer are kept with the thought, so that no prompt begins a turn
    # with them.
    while closed and count < len(ids) and tokenizer.decode(ids[count : count + 1]).isspace():
        count += 1
    thought, text = tokenizer.decode(ids[:count], skip_special=False), tokenizer.decode(ids[count:])
    if isinstance(form, WrittenThoughts) and closed:
        # The token that completes the marker may hold the first characters of the answer, too.
        end = thought.index(form.end) + len(form.end)
        if thought[end:].strip():
            thought, text = thought[:end], thought[end:] + text
    return Said(text, thought, not closed, count)
