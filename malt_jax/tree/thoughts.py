"""Reading completions of thinking models: the thought, and the answer after it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, NamedTuple

from malt_jax.models.thoughts import AnyThoughts, WrittenThoughts


class Said(NamedTuple):
    """A completion as it is read: the answer, and the thought before it."""

    text: str
    """What follows the thought, or all of it; empty for a thought that was never closed."""
    thought: str | None = None
    """The thought with all that stands before the answer, its markers too; it and `text` make up
    the completion, up to where the answer ends."""
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
    if form is None:
        return Said(tokenizer.decode(ids))
    count, closed = form.split(ids)
    # What a model writes after its answer, a further message of gpt-oss, belongs to neither.
    ids = ids[: form.answer_end(ids, count)]
    if count:
        # Blanks between thought and answer are kept with the thought, so that no prompt begins a
        # turn with them.
        while closed and count < len(ids) and tokenizer.decode(ids[count : count + 1]).isspace():
            count += 1
    thought, text = tokenizer.decode(ids[:count], skip_special=False), tokenizer.decode(ids[count:])
    if isinstance(form, WrittenThoughts) and count and closed:
        # The token that completes the marker may hold the first characters of the answer, too.
        end = thought.rindex(form.end) + len(form.end)
        if thought[end:].strip():
            thought, text = thought[:end], thought[end:] + text
    if form.wrapper is not None and closed:
        before, text = _unwrapped(text, form.wrapper)
        if before:
            thought += before
            lengths = range(len(ids))
            count = bisect_left(
                lengths, len(thought),
                key=lambda n: len(tokenizer.decode(ids[:n], skip_special=False)),
            )  # fmt: skip
    return Said(text, thought, not closed, count) if count else Said(text)


def _unwrapped(text: str, wrapper: tuple[str, str]) -> tuple[str, str]:
    """What stands before a wrapped answer, and the answer alone.

    Of a text that is not whole yet, a part of a marker at its end is left out as well.
    """
    begin, end = wrapper
    head = text.lstrip()
    if head and begin.startswith(head):
        return text, ""
    if not head.startswith(begin):
        return "", text
    answer = head.removeprefix(begin).lstrip()
    before = text.removesuffix(answer)
    if end in answer:
        return before, answer[: answer.rindex(end)]
    cut = next((n for n in range(len(end) - 1, 0, -1) if answer.endswith(end[:n])), 0)
    return before, answer[: len(answer) - cut]
