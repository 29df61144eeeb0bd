"""The schema of `results.json`: what the table of an evaluation says, as plain JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict


class McNemar(TypedDict):
    """Changed answers from one row to another on the same questions, and their p-value."""

    wrong_to_right: int
    right_to_wrong: int
    p: float
    """Exact McNemar test; with several seeds the exact sign-flip test over questions."""


class Comparison(McNemar):
    """A row compared with another one."""

    delta: float
    """Difference in accuracy."""
    delta_interval: list[float]
    p_pooled: NotRequired[float]
    """With several seeds: McNemar on the flips of all of them, as if they were independent."""
    seeds: NotRequired[dict[str, McNemar]]
    """With several seeds: each alone."""


class PairedTest(Comparison):
    """A comparison as one of the table's family of tests."""

    p_holm: float
    """`p` after Holm's correction."""


class VotedRow(TypedDict):
    """A system under a majority vote over its first `votes` draws, by itself."""

    name: str
    system: str
    label: str
    votes: int
    calls: int
    """Model calls per question, rounded up where questions differ."""
    tokens: float
    """Generated tokens per question."""
    accuracy: float
    interval: list[float]
    seconds: float | None
    """Wall-clock time per question, if it was measured."""
    unparsed: int
    """Draws without an answer."""
    truncated: int
    """Draws with a turn that was cut at its token limit."""
    ties: int
    """Questions on which the vote was a tie."""
    seeds: NotRequired[dict[str, float]]
    """With several seeds: the accuracy under each, and below its standard deviation."""
    seeds_sd: NotRequired[float]


class Row(VotedRow):
    """One row of the table: a system under a vote, compared with other rows."""

    tests: dict[str, PairedTest]
    """By the name of the row it is compared with."""
    equal_calls_baseline: str
    """The row of the single agent that votes over the same number of calls."""


class TurnAccuracy(TypedDict):
    """How often the answer that a turn itself states is right."""

    turn: int
    role: str
    accuracy: float


Flip = TypedDict(
    "Flip", {"from": str, "to": str, "wrong_to_right": int, "right_to_wrong": int}
)  # `from` is a keyword, so no class can have it
"""Changes from the answer of one turn to that of a later one."""


class Turns(TypedDict):
    """The accuracy of a system by turn, over all of its draws."""

    system: str
    draws: int
    accuracy: list[TurnAccuracy]
    flips: list[Flip]


class Level(TypedDict):
    """The accuracy of every row on the questions of one level of difficulty."""

    questions: int
    accuracy: dict[str, float]


class Bin(TypedDict):
    """The predictions between `low` and `high`: their mean, and the mean of what was observed."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


class Reliability(TypedDict):
    """How well the values of a role's nodes predict rewards."""

    outcomes: int
    auc: float | None
    brier: float
    brier_base: float
    """Brier score of always predicting the mean reward."""
    bins: list[Bin]


class Results(TypedDict):
    """The content of `results.json`."""

    run: Mapping[str, Any]
    """Facts of the run: model, task, seed, and so on."""
    questions: int
    seeds: list[int]
    baseline: str
    """The row that every other row is tested against."""
    confidence: float
    """Of every interval."""
    systems: list[Row]
    turns: list[Turns]
    levels: dict[str, Level]
    calibration: dict[str, Reliability]
    """By role."""
    cost: Mapping[str, Any]
    """By stage."""
    labels: Mapping[str, Any]
    """Counts of the role data."""
    records: Mapping[str, str]
    """SHA-256 of the files of draws that this was computed from, by path."""
