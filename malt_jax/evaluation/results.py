"""Evaluation records -> the table of results, as plain data (`results.json`).

A row is a system and a number of votes: `malt@3` is the majority of the first three runs of the
pipeline `malt`, and costs three times its calls. Each row is compared on the same questions with
the named baseline and with the single agent voting over the same number of calls, which is
therefore always a row of the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from malt_jax.errors import UserError
from malt_jax.evaluation import breakdown, statistics

Record = Mapping[str, Any]
Unit = tuple[int, str]
"""A seed and a question: what one row of the table answers once."""


@dataclass(frozen=True)
class SystemInfo:
    """What a table says about a system, beside its records."""

    label: str
    votes: tuple[int, ...] = (1,)
    """One row for each: the majority of that many draws."""
    seconds: float | None = None
    """Wall-clock a question and draw, where it was measured."""


@dataclass(frozen=True)
class Row:
    """A system under a vote, answered over all units in one fixed order."""

    name: str
    system: str
    label: str
    votes: int
    correct: np.ndarray
    """[units] bool: is the voted answer right?"""
    summary: dict[str, Any]
    """Everything about the row that needs no other row."""


def row_name(system: str, votes: int) -> str:
    """`malt` for one draw, `malt@3` for the majority of three."""
    return system if votes == 1 else f"{system}@{votes}"


def single_agent_draws(calls: Mapping[str, int], votes: Mapping[str, Sequence[int]]) -> int:
    """Draws of the single agent that give every row its equal-call baseline.

    `calls[system]` is the number of model calls of one draw, `votes[system]` the rows wanted.
    """
    return max(calls[system] * k for system in calls for k in votes[system])


def with_seeds(records: Mapping[int, Mapping[str, Iterable[Record]]]) -> dict[str, list[Record]]:
    """Joins the records of several runs of one config, marking each with its run's seed."""
    pooled: dict[str, list[Record]] = defaultdict(list)
    for seed, systems in records.items():
        for name, rows in systems.items():
            pooled[name] += [{**row, "seed": seed} for row in rows]
    return dict(pooled)


def summarise(
    records: Mapping[str, Iterable[Record]],
    systems: Mapping[str, SystemInfo],
    baseline: str,
    *,
    single_agent: str = "sa",
    levels: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    cost: Mapping[str, Mapping[str, Any]] | None = None,
    labels: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    sources: Mapping[str, Any] | None = None,
    confidence: float = 0.95,
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
      records: by system, one record a question and draw (a record may carry a `seed`).
      systems: label and votes of each system, in the order of the table.
      baseline: the row every other row is tested against, e.g. `sa@9`.
      single_agent: the one-call system whose votes are the equal-call baselines.
      levels: the difficulty (or subject) of each question id, for the breakdown.
      run, cost, labels, calibration, sources: passed on as they are; `sources` has the SHA-256 of
        the records this was made from.
      confidence: of every interval.

    A turn of a record may carry `correct` (is the answer this turn states right?), from which the
    accuracy by turn and the flips between turns are made. Raises `UserError` where records are
    missing, doubled, or cover different questions.
    """
    records = {name: list(rows) for name, rows in records.items()}
    for name in [*systems, single_agent]:
        if name not in systems or not records.get(name):
            raise UserError(
                f"evaluation: the system {name!r} has no records; every table needs it, "
                "so add it to the evaluated systems."
            )
    draws = {name: _by_unit(name, records[name]) for name in systems}
    units = sorted(draws[single_agent])
    for name in systems:
        _check_same_questions(name, draws[name], single_agent, units)

    rows = {}
    votes = _votes(systems, draws, single_agent, baseline)
    for name, info in systems.items():
        for k in votes[name]:
            row = _row(name, info, k, draws[name], units, confidence)
            rows[row.name] = row
    if baseline not in rows:
        raise UserError(
            f"evaluation: the baseline {baseline!r} is not a row of the table; "
            f"choose one of {', '.join(rows)}."
        )
    return {
        "run": dict(run or {}),
        "questions": len({question for _, question in units}),
        "seeds": sorted({seed for seed, _ in units}),
        "baseline": baseline,
        "confidence": confidence,
        "systems": _tested(rows, units, baseline, single_agent, confidence, bootstrap_seed),
        "turns": [found for name in systems if (found := breakdown.turns(name, records[name]))],
        "levels": breakdown.levels(
            {row.name: row.correct for row in rows.values()}, [q for _, q in units], levels
        ),
        "calibration": dict(calibration or {}),
        "cost": dict(cost or {}),
        "labels": dict(labels or {}),
        "records": dict(sources or {}),
    }


def _by_unit(system: str, records: list[Record]) -> dict[Unit, list[Record]]:
    """The draws of each unit in their order 0, 1, ..; none may be missing or doubled."""
    units: dict[Unit, dict[int, Record]] = defaultdict(dict)
    for record in records:
        draws = units[record.get("seed", 0), record["question_id"]]
        if record["draw"] in draws:
            raise UserError(
                f"eval/{system}.jsonl: question {record['question_id']!r} has draw "
                f"{record['draw']} twice; remove the file and evaluate this system again."
            )
        draws[record["draw"]] = record
    most = max(len(draws) for draws in units.values())
    for (_, question), draws in units.items():
        if sorted(draws) != list(range(most)):
            raise UserError(
                f"eval/{system}.jsonl: question {question!r} has the draws {sorted(draws)}, "
                f"others have {most} from 0; evaluate this system again to complete it."
            )
    return {unit: [draws[i] for i in range(most)] for unit, draws in units.items()}


def _check_same_questions(
    name: str, draws: Mapping[Unit, Any], reference: str, units: Sequence[Unit]
) -> None:
    differing = set(draws) ^ set(units)
    if differing:
        _, question = min(differing)
        raise UserError(
            f"evaluation: {name!r} and {reference!r} did not answer the same questions "
            f"({len(differing)} differ, one is {question!r}); evaluate both on the same ones."
        )


def _votes(
    systems: Mapping[str, SystemInfo],
    draws: Mapping[str, Mapping[Unit, list[Record]]],
    single_agent: str,
    baseline: str,
) -> dict[str, list[int]]:
    """The votes of each system's rows; the single agent's cover every other row's calls."""
    votes = {name: set(info.votes) for name, info in systems.items()}
    name, _, count = baseline.partition("@")
    if name in votes and (count or "1").isdigit():
        votes[name].add(int(count or 1))
    for name in systems:
        votes[single_agent] |= {_calls(draws[name], k) for k in votes[name]}
    for name in systems:
        have = len(next(iter(draws[name].values())))
        if max(votes[name]) > have or min(votes[name]) < 1:
            raise UserError(
                f"evaluation: {name!r} has {have} draws a question, but the table needs a vote of "
                f"{max(votes[name])} (the single agent needs as many draws as the dearest row has "
                "calls); evaluate it with more draws or ask for fewer votes."
            )
    return {name: sorted(counts) for name, counts in votes.items()}


def _calls(draws: Mapping[Unit, list[Record]], votes: int) -> int:
    """Model calls a question of a vote, rounded up where questions differ."""
    total = sum(record["calls"] for unit in draws.values() for record in unit[:votes])
    return -(-total // len(draws))


def _row(
    system: str,
    info: SystemInfo,
    votes: int,
    draws: Mapping[Unit, list[Record]],
    units: Sequence[Unit],
    confidence: float,
) -> Row:
    used = [draws[unit][:votes] for unit in units]
    outcomes = [statistics.majority_vote([r["prediction"] for r in drawn]) for drawn in used]
    correct = np.array(
        [drawn[vote.draw]["correct"] for drawn, vote in zip(used, outcomes, strict=True)], bool
    )
    every = [record for drawn in used for record in drawn]
    summary = {
        "votes": votes,
        "calls": _calls(draws, votes),
        "tokens": sum(record["tokens"] for record in every) / len(units),
        "accuracy": float(correct.mean()),
        "interval": list(statistics.wilson_interval(int(correct.sum()), len(units), confidence)),
        "seconds": None if info.seconds is None else info.seconds * votes,
        # Draws without an answer, and draws in which a turn was cut at its token limit.
        "unparsed": sum(record["prediction"] is None for record in every),
        "truncated": sum(
            any(turn["finish"] == "length" for turn in record["turns"]) for record in every
        ),
        "ties": sum(vote.tie for vote in outcomes),
    }
    seeds = np.array([seed for seed, _ in units])
    if len(set(seeds.tolist())) > 1:
        by_seed = {str(seed): float(correct[seeds == seed].mean()) for seed in np.unique(seeds)}
        summary["seeds"] = by_seed
        summary["seeds_sd"] = float(np.std(list(by_seed.values()), ddof=1))
        # Questions shared by the seeds are not independent: resample them whole.
        sums, sizes = _per_question(correct.astype(int), units)
        summary["interval"] = list(
            statistics.bootstrap_interval(sums, sizes, confidence=confidence)
        )
    label = info.label if votes == 1 else f"{info.label}, vote of {votes}"
    return Row(row_name(system, votes), system, label, votes, correct, summary)


def _tested(
    rows: Mapping[str, Row],
    units: Sequence[Unit],
    baseline: str,
    single_agent: str,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Each row with its paired tests; Holm's correction runs over all tests of the table."""
    table, family = [], []
    for row in rows.values():
        equal_calls = row_name(single_agent, row.summary["calls"])
        tests = {}
        for other in dict.fromkeys([baseline, equal_calls]):
            if other != row.name:
                tests[other] = compare(
                    rows[other].correct, row.correct, units, confidence=confidence, seed=seed
                )
                family.append(tests[other])
        table.append(
            {
                "name": row.name,
                "system": row.system,
                "label": row.label,
                **row.summary,
                "tests": tests,
                "equal_calls_baseline": equal_calls,
            }
        )
    for test, corrected in zip(family, statistics.holm([t["p"] for t in family]), strict=True):
        test["p_holm"] = corrected
    return table


def compare(
    before: np.ndarray,
    after: np.ndarray,
    units: Sequence[Unit],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The paired comparison of two systems on the same units: flips, test, difference.

    One seed: exact McNemar. Several: the sign-flip test over whole questions; beside it
    `p_pooled`, exact McNemar on the summed flips, which takes a question's answers under several
    seeds for independent, and the flips and exact McNemar of every seed alone.
    """
    changed = statistics.flips(before, after)
    sums, sizes = _per_question(after.astype(int) - before.astype(int), units)
    test: dict[str, Any] = {
        "wrong_to_right": changed.wrong_to_right,
        "right_to_wrong": changed.right_to_wrong,
        "p": statistics.clustered_mcnemar(sums),
        "delta": float(after.mean() - before.mean()),
        "delta_interval": list(
            statistics.bootstrap_interval(sums, sizes, confidence=confidence, seed=seed)
        ),
    }
    seeds = np.array([seed for seed, _ in units])
    exact = statistics.exact_mcnemar(changed.wrong_to_right, changed.right_to_wrong)
    if len(set(seeds.tolist())) == 1:
        test["p"] = exact
    else:
        test["p_pooled"] = exact
        test["seeds"] = {}
        for one in np.unique(seeds):
            alone = statistics.flips(before[seeds == one], after[seeds == one])
            test["seeds"][str(one)] = {
                "wrong_to_right": alone.wrong_to_right,
                "right_to_wrong": alone.right_to_wrong,
                "p": statistics.exact_mcnemar(alone.wrong_to_right, alone.right_to_wrong),
            }
    return test


def _per_question(values: np.ndarray, units: Sequence[Unit]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of `values` and numbers of seeds, by question."""
    _, index = np.unique([question for _, question in units], return_inverse=True)
    sums = np.bincount(index, weights=values).round().astype(np.int64)
    return sums, np.bincount(index)
