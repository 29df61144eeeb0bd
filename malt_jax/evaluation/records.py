"""The records of an evaluation: every draw of a system on a question, with all of its turns.

`eval/SYSTEM.jsonl` holds one draw per line. `to_record` and `from_record` are its only
serialisation; the order of the keys is part of the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TurnRecord:
    """One completion of a draw: who wrote it, from which prompt, and how it was graded."""

    role: str
    policy: str
    prompt: str
    text: str
    """The completion decoded, without its end token and without its thought."""
    tokens: int
    """Length of the completion, end token included."""
    logprob: float
    """Log-probability of the completion under the policy at temperature 1, unfiltered."""
    finish: str
    """Why it ended: `eos`, `stop` or `length`."""
    parsed: str | None
    """The answer read from the text; None if there is none or the role does not answer."""
    correct: bool | None
    """Whether `parsed` is right; None for a role that does not answer."""
    support: float | None = None
    """Of a critique with a verdict: how far it supports the answer it read, from 0 to 1."""

    thought: str | None = None
    """What a thinking model wrote before the text, with the tokens around it."""
    unclosed: bool = False
    """The completion ended within its thought, so that its text is empty and no answer."""

    def to_record(self) -> dict[str, Any]:
        """The turn as a JSON object; what only some turns have is left out where it is absent."""
        return {name: value for name, value in vars(self).items() if (name, value) not in _ABSENT}


_ABSENT = (("support", None), ("thought", None), ("unclosed", False))


@dataclass(frozen=True)
class DrawRecord:
    """One draw of a system on one question; the votes of the table are taken over draws."""

    question_id: str
    draw: int
    prediction: str | None
    """The last answering turn's answer, by majority if there are several agents."""
    correct: bool
    turns: tuple[TurnRecord, ...]
    seed: int = 0
    """Seed of the run, set where runs are pooled. It is not stored: the run's config has it."""

    @classmethod
    def left_out(cls, question_id: str, draw: int) -> DrawRecord:
        """A draw that was not taken, because the vote was certain without it: it has no turns."""
        return cls(question_id, draw, None, False, ())

    @property
    def calls(self) -> int:
        """Model calls, the first half of what a draw costs."""
        return len(self.turns)

    @property
    def tokens(self) -> int:
        """Generated tokens, the second half of what a draw costs."""
        return sum(turn.tokens for turn in self.turns)

    def to_record(self) -> dict[str, Any]:
        """The draw as a JSON object, one line of `eval/SYSTEM.jsonl`."""
        return {
            "question_id": self.question_id,
            "draw": self.draw,
            "prediction": self.prediction,
            "correct": self.correct,
            "calls": self.calls,
            "tokens": self.tokens,
            "turns": [turn.to_record() for turn in self.turns],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DrawRecord:
        """The draw of a JSON object; raises ValueError where a field is missing or unknown."""
        # `calls` and `tokens` are in the file for its readers; here they follow from the turns.
        try:
            return cls(
                record["question_id"],
                record["draw"],
                record["prediction"],
                record["correct"],
                tuple(TurnRecord(**turn) for turn in record["turns"]),
            )
        except KeyError as error:
            raise ValueError(f"a draw without {error}") from None
        except TypeError as error:
            raise ValueError(f"a draw with a malformed turn ({error})") from None
