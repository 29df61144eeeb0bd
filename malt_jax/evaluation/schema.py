"""The schema of `results.json`: the table of an evaluation as plain JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict


class McNemar(TypedDict):
    """Changed answers from one row of the table to another, and the exact McNemar p-value."""

    wrong_to_right: int
    right_to_wrong: int
    p: float


class Comparison(McNemar):
    """A row compared with another one; with several seeds, `p` is the sign-flip test's."""

    delta: float  # difference in accuracy
    delta_interval: list[float]
    p_pooled: NotRequired[float]  # several seeds: McNemar, as if their answers were independent
    seeds: NotRequired[dict[str, McNemar]]  # several seeds: each alone


class PairedTest(Comparison):
    """A comparison as one of the table's family of tests."""

    p_holm: float  # after Holm's correction


class Weighted(McNemar):
    """A vote weighted by what critiques say of the answers, compared with the plain vote."""

    accuracy: float


class EqualTokens(Comparison):
    """A row compared with the single agent that votes over the fewest draws of as many tokens."""

    row: str  # the single agent and its votes
    tokens: float  # generated, per question
    accuracy: float
    reached: bool  # whether it has draws for so many tokens; else all its draws vote


class VotedRow(TypedDict):
    """A system under a majority vote over its first `votes` draws, by itself."""

    name: str
    system: str
    label: str
    votes: int
    calls: int  # per question, rounded up where questions differ
    tokens: float  # generated, per question
    accuracy: float
    interval: list[float]
    seconds: float | None  # per question, if they were measured
    unparsed: int  # draws without an answer
    truncated: int  # draws with a turn that was cut at its token limit
    ties: int  # questions with a tied vote
    draws: int  # drawn per question, of which the first `votes` vote
    pass_at_k: float  # chance that one of `votes` draws is right, estimated from all of them
    temperature: NotRequired[float]  # of every turn, in a sweep of temperatures
    weighted: NotRequired[Weighted]  # where critiques state verdicts
    seeds: NotRequired[dict[str, float]]  # several seeds: the accuracy under each
    seeds_sd: NotRequired[float]  # and its standard deviation


class Row(VotedRow):
    """One row of the table: a system under a vote, compared with other rows."""

    tests: dict[str, PairedTest]  # by the name of the other row
    equal_calls_baseline: str  # the single agent that votes over the same number of calls
    equal_tokens: NotRequired[EqualTokens]  # not for the single agent itself


class TurnAccuracy(TypedDict):
    """How often the answer that a turn itself states is right."""

    turn: int
    role: str
    accuracy: float


# Flips from the answer of one turn to that of a later one; no class can have a field `from`.
Flip = TypedDict("Flip", {"from": str, "to": str, "wrong_to_right": int, "right_to_wrong": int})


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
    brier_base: float  # the score of always predicting the mean reward
    bins: list[Bin]


class Results(TypedDict):
    """The content of `results.json`."""

    run: Mapping[str, Any]  # facts: model, task, seed, and so on
    questions: int
    seeds: list[int]
    baseline: str  # the row that every other row is tested against
    confidence: float  # of every interval
    systems: list[Row]
    turns: list[Turns]
    levels: dict[str, Level]
    calibration: dict[str, Reliability]  # by role
    cost: Mapping[str, Any]  # by stage
    labels: Mapping[str, Any]  # counts of the role data
    records: Mapping[str, str]  # SHA-256 of each file of draws, by its path
