"""Turns that are written side by side, as a text in which one whole turn follows the other."""

from __future__ import annotations

from collections.abc import Iterator

Piece = tuple[int, str, str]
"""A draw, a role, and text of that turn."""
BETWEEN = "\n\n"
"""What separates two turns, as in a reply that is not streamed."""


class InOrder:
    """Takes the texts of one choice's turns as they come, and passes them on in a readable order.

    The turn that began first is passed on as it is written; what is said beside it waits until that
    turn is over. Before the first text of each turn but the first stands an empty line, so that
    whoever joins all pieces can read them.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, str], str] = {}
        """Texts that are not passed on yet, in the order in which their turns began."""
        self._speaking: dict[int, str] = {}
        """The role whose turn each draw is taking."""
        self._last: tuple[int, str] | None = None

    def add(self, draw: int, role: str, text: str) -> Iterator[Piece]:
        """Takes new text of a turn; the draw's turn before it is over."""
        self._speaking[draw] = role
        turn = draw, role
        self._waiting[turn] = self._waiting.get(turn, "") + text
        return self._ready()

    def finish(self, draw: int) -> Iterator[Piece]:
        """The draw's last turn of these is over."""
        self._speaking.pop(draw, None)
        return self._ready()

    def _ready(self) -> Iterator[Piece]:
        for turn in [*self._waiting]:
            draw, role = turn
            if text := self._waiting[turn]:
                self._waiting[turn] = ""
                between = BETWEEN if self._last not in (None, turn) else ""
                self._last = turn
                yield draw, role, between + text
            if self._speaking.get(draw) == role:
                return  # it goes on; the others wait
            del self._waiting[turn]
