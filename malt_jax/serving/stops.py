"""The stop texts of a request, which end its answer and are no part of it."""

from __future__ import annotations

from collections.abc import Sequence


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop texts in it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


class StopFilter:
    """Takes a text piece by piece and returns what of it is certain to be in the answer.

    The end of what has come may be the beginning of a stop text; it is held back until that is
    clear.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops, self._text, self._sent = stops, "", 0

    def add(self, piece: str) -> str:
        self._text += piece
        certain = before_stop(self._text, self._stops)
        if certain == self._text:
            certain = certain[: len(certain) - self._held()]
        return self._new(certain)

    def finish(self, text: str) -> str:
        """The rest of the answer, once its whole text is known."""
        return self._new(before_stop(text, self._stops))

    def _held(self) -> int:
        """How many characters at the end are the beginning of a stop text."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, min(len(stop), len(self._text) + 1))
                if self._text.endswith(stop[:length])
            ),
            default=0,
        )

    def _new(self, certain: str) -> str:
        new = certain[self._sent :]
        self._sent += len(new)
        return new
