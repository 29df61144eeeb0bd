"""From the draws of an evaluation to the table of results, the content of `results.json`.

A row is a system and a number of votes: `malt@3` is the majority of the first three draws of the
pipeline `malt`, and costs three times its calls. Each row is compared on the same questions with
the named baseline and with the single agent voting over the same number of calls, which is
therefore always a row of the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from malt_jax.errors import UserError
from malt_jax.evaluation import breakdown, measures, statistics
from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.schema import (
    EqualTokens,
    PairedTest,
    Reliability,
    Results,
    Row,
    VotedRow,
)
from malt_jax.evaluation.units import Unit, Units, compare

Draws = Mapping[Unit, list[DrawRecord]]
"""The draws of one system by unit, in the order they were drawn."""


@dataclass(frozen=True)
class SystemInfo:
    """What the table says about a system besides its draws."""

    label: str
    votes: tuple[int, ...] = (1,)
    """One row for each: the majority of that many draws."""
    seconds: float | None = None
    """Wall-clock time per question and draw, if it was measured."""
    single_agent: str | None = None
    """The system whose votes are its equal-call baselines; None: the table's."""
    baseline: str | None = None
    """The row that it is tested against; None: the table's."""
    temperature: float | None = None
    """The temperature of all turns in a sweep; None: each role's own."""


def row_name(system: str, votes: int) -> str:
    """`malt` for one draw, `malt@3` for the majority of three."""
    return system if votes == 1 else f"{system}@{votes}"


def single_agent_draws(calls: Mapping[str, int], votes: Mapping[str, Sequence[int]]) -> int:
    """Draws that the single agent needs so that every row has its equal-call baseline.

    `calls[system]` is the number of model calls of one draw, `votes[system]` the rows wanted.
    """
    return max(calls[system] * k for system in calls for k in votes[system])


def with_seeds(
    draws: Mapping[int, Mapping[str, Iterable[DrawRecord]]],
) -> dict[str, list[DrawRecord]]:
    """Joins the draws of several runs of one config, marking each with the seed of its run."""
    pooled: dict[str, list[DrawRecord]] = defaultdict(list)
    for seed, systems in draws.items():
        for name, rows in systems.items():
            pooled[name] += [replace(draw, seed=seed) for draw in rows]
    return dict(pooled)


def summarise(
    draws: Mapping[str, Sequence[DrawRecord]],
    systems: Mapping[str, SystemInfo],
    baseline: str,
    *,
    single_agent: str = "sa",
    levels: Mapping[str, Any] | None = None,
    clusters: Mapping[str, str] | None = None,
    run: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Reliability] | None = None,
    sources: Mapping[str, str] | None = None,
    confidence: float = 0.95,
) -> Results:
    """The table of results: every row with its paired tests, and the breakdowns below it.

    Args:
      draws: every draw of each system; all systems have answered the same questions.
      systems: label and votes of each system, in the order of the table.
      baseline: the row that every other row is tested against, for example `sa@9`.
      single_agent: the system of one call whose votes are the equal-call baselines.
      levels: the difficulty (or subject) of each question id, for the breakdown.
      clusters: see `Units`.
      run, cost, labels, calibration, sources: copied into the results; see `schema.Results`.
      confidence: of every interval.

    Raises `UserError` if draws are missing, doubled, or cover different questions.
    """
    # 1. Draws by unit, all on the single agent's units: without the same ones, nothing is paired.
    single = {name: info.single_agent or single_agent for name, info in systems.items()}
    for name in [*systems, *single.values()] or [single_agent]:
        if name not in systems or not draws.get(name):
            raise UserError(
                f"evaluation: the system {name!r} has no records; every table needs it, "
                "so add it to the evaluated systems."
            )
    by_unit = {name: _by_unit(name, draws[name]) for name in systems}
    reference = next(iter(single.values()))
    units = Units(sorted(by_unit[reference]), clusters or {})
    for name in systems:
        _check_same_questions(name, by_unit[name], reference, units)

    # 2. Each row by itself, and its outcome on each unit.
    rows: dict[str, VotedRow] = {}
    correct: dict[str, Bool[np.ndarray, " U"]] = {}
    baselines = {name: info.baseline or baseline for name, info in systems.items()}
    votes = _votes(systems, by_unit, single, baselines.values())
    for name, info in systems.items():
        for k in votes[name]:
            key = row_name(name, k)
            rows[key], correct[key] = _row(name, info, k, by_unit[name], units, confidence)
    for wanted in baselines.values():
        if wanted not in rows:
            raise UserError(
                f"evaluation: the baseline {wanted!r} is not a row of the table; "
                f"choose one of {', '.join(rows)}."
            )
    # 3. Each row against the baseline and against the single agent at equal calls. If these are one
    # row it is one test, which enters Holm's correction once.
    equal_calls = {key: row_name(single[row["system"]], row["calls"]) for key, row in rows.items()}
    comparisons = {
        (key, other): compare(correct[other], correct[key], units, confidence)
        for key in rows
        for other in dict.fromkeys([baselines[rows[key]["system"]], equal_calls[key]])
        if other != key
    }
    # The family of Holm's correction is the whole table, in which two rows that are each other's
    # baseline have one test.
    family = {frozenset(pair): found["p"] for pair, found in comparisons.items()}
    corrected = dict(zip(family, statistics.holm([*family.values()]), strict=True))
    tests: dict[str, dict[str, PairedTest]] = defaultdict(dict)
    for (key, other), found in comparisons.items():
        tests[key][other] = {**found, "p_holm": corrected[frozenset((key, other))]}
    # 4. Each row against the single agent at equal tokens, beside the table and its correction.
    table: list[Row] = [
        {**row, "tests": tests[key], "equal_calls_baseline": equal_calls[key]}
        for key, row in rows.items()
    ]
    for full in table:
        name, calls = single[full["system"]], full["calls"]
        if full["system"] != name and len(set(single.values())) > 1:
            agents = (key for key, row in rows.items() if row["system"] in single.values())
            cheap = [key for key in agents if rows[key]["calls"] <= calls]
            best = max(cheap, key=lambda key: rows[key]["accuracy"])
            test = compare(correct[best], correct[full["name"]], units, confidence)
            full["best_single_agent"] = {**test, "row": best, "accuracy": rows[best]["accuracy"]}
        if full["system"] != name:
            agent = name, systems[name], by_unit[name]
            right = correct[full["name"]]
            full["equal_tokens"] = _equal_tokens(full, right, agent, units, confidence)
    results: Results = {
        "run": dict(run or {}),
        "questions": len(set(units.questions)),
        "seeds": np.unique(units.seeds).tolist(),
        "baseline": baseline,
        "confidence": confidence,
        "systems": table,
        "turns": [turns for name in systems if (turns := breakdown.turns(name, draws[name]))],
        "levels": breakdown.levels(correct, units.questions, levels),
        "calibration": dict(calibration or {}),
        "cost": dict(cost or {}),
        "labels": dict(labels or {}),
        "records": dict(sources or {}),
    }
    if units.grouped:
        results["clusters"] = units.grouped
    return results


def _by_unit(system: str, records: Iterable[DrawRecord]) -> Draws:
    """The draws 0, 1, ... of each unit; refuses missing and doubled ones."""
    units: dict[Unit, dict[int, DrawRecord]] = defaultdict(dict)
    for record in records:
        draws = units[record.seed, record.question_id]
        if record.draw in draws:
            raise UserError(
                f"eval/{system}.jsonl: question {record.question_id!r} has draw {record.draw} "
                "twice; remove the file and evaluate this system again."
            )
        draws[record.draw] = record
    most = max(len(draws) for draws in units.values())
    for (_, question), draws in units.items():
        # A vote of k takes the draws 0 to k - 1, so a gap would change who votes.
        if sorted(draws) != list(range(most)):
            raise UserError(
                f"eval/{system}.jsonl: question {question!r} has the draws {sorted(draws)}, "
                f"others have {most} from 0; evaluate this system again to complete it."
            )
    return {unit: [draws[i] for i in range(most)] for unit, draws in units.items()}


def _check_same_questions(name: str, draws: Draws, reference: str, units: Units) -> None:
    differing = set(draws) ^ set(units.pairs)
    if differing:
        _, question = min(differing)
        raise UserError(
            f"evaluation: {name!r} and {reference!r} did not answer the same questions "
            f"({len(differing)} differ, one is {question!r}); evaluate both on the same ones."
        )


def _votes(
    systems: Mapping[str, SystemInfo],
    draws: Mapping[str, Draws],
    single: Mapping[str, str],
    baselines: Iterable[str],
) -> dict[str, list[int]]:
    """The votes of each system's rows; its single agent's cover the calls of every row of it."""
    # A baseline that names no row is refused in `summarise`, with a list of the rows there are.
    votes = {name: set(info.votes) for name, info in systems.items()}
    for baseline in baselines:
        name, _, count = baseline.partition("@")
        if name in votes and (count or "1").isdigit():
            votes[name].add(int(count or 1))
    for name in systems:
        votes[single[name]] |= {_calls(draws[name], k) for k in votes[name]}
    for name in systems:
        have = len(next(iter(draws[name].values())))
        if max(votes[name]) > have or min(votes[name]) < 1:
            raise UserError(
                f"evaluation: {name!r} has {have} draws per question, but the table needs a vote "
                f"of {max(votes[name])} (the single agent needs as many draws as the row with the "
                "most calls has calls); evaluate it with more draws or ask for fewer votes."
            )
    return {name: sorted(counts) for name, counts in votes.items()}


def _calls(draws: Draws, votes: int) -> int:
    """Model calls per question of a vote, rounded up where questions differ.

    A draw that was left out counts like the others: it is what the vote may cost.
    """
    # Rounded up, so that the single agent never has fewer calls than the row beside it.
    calls = [record.calls for drawn in draws.values() for record in drawn[:votes] if record.turns]
    return -(-sum(calls) * votes // len(calls))


def _row(
    system: str, info: SystemInfo, votes: int, draws: Draws, units: Units, confidence: float
) -> tuple[VotedRow, Bool[np.ndarray, " U"]]:
    """A row by itself, and whether its voted answer to each unit is right."""
    used = [draws[unit][:votes] for unit in units.pairs]
    outcomes = [statistics.majority_vote([r.prediction for r in drawn]) for drawn in used]
    # The grade of the draw that gave the winning answer first; nothing is graded again.
    correct = np.array(
        [drawn[vote.draw].correct for drawn, vote in zip(used, outcomes, strict=True)], bool
    )
    every = [record for drawn in used for record in drawn]
    row: VotedRow = {
        "name": row_name(system, votes),
        "system": system,
        "label": info.label if votes == 1 else f"{info.label}, vote of {votes}",
        "votes": votes,
        "calls": _calls(draws, votes),
        "tokens": measures.tokens_by_votes([draws[unit] for unit in units.pairs])[votes - 1],
        "accuracy": float(correct.mean()),
        "interval": list(statistics.wilson_interval(int(correct.sum()), len(used), confidence)),
        "seconds": None if info.seconds is None else info.seconds * votes,
        "unparsed": sum(record.prediction is None for record in every if record.turns),
        "truncated": sum(any(turn.finish == "length" for turn in record.turns) for record in every),
        "ties": sum(vote.tie for vote in outcomes),
        "draws": len(draws[units.pairs[0]]),
    }
    left_out = sum(not record.turns for record in every)
    if left_out:
        row["left_out"] = left_out
    # What is drawn depends on the answers, so that only complete draws estimate it without bias.
    if all(record.turns for drawn in draws.values() for record in drawn):
        row["pass_at_k"] = measures.pass_at_k([draws[unit] for unit in units.pairs], votes)
    if any(turn.thought is not None for record in every for turn in record.turns):
        row["unclosed"] = sum(any(turn.unclosed for turn in record.turns) for record in every)
    if info.temperature is not None:
        row["temperature"] = info.temperature
    # A plain vote that is certain need not be so with weights.
    if votes > 1 and not left_out and (by_critique := measures.weighted_outcomes(used)):
        right = np.array(by_critique, bool)
        test = compare(correct, right, units, confidence)
        row["weighted"] = {**test, "accuracy": float(right.mean())}
    if units.pooled:
        by_seed = {
            str(seed): float(correct[units.seeds == seed].mean()) for seed in np.unique(units.seeds)
        }
        row["seeds"] = by_seed
        # The seeds are a sample of those that could have been run, so n - 1.
        row["seeds_sd"] = float(np.std(list(by_seed.values()), ddof=1))
    if units.clustered:
        # Answers to one question under several seeds, and to instances of one template, are not
        # independent: resample whole clusters.
        sums, sizes = units.per_cluster(correct.astype(int))
        low, high = statistics.bootstrap_interval(sums, sizes, confidence=confidence)
        row["interval"] = [max(0.0, low), high]
    return row, correct


def _equal_tokens(
    row: Row,
    correct: Bool[np.ndarray, " U"],
    single: tuple[str, SystemInfo, Draws],
    units: Units,
    confidence: float,
) -> EqualTokens:
    """A row compared with the single agent (name, info, draws) that generates as many tokens."""
    name, info, draws = single
    by_votes = measures.tokens_by_votes([draws[unit] for unit in units.pairs])
    votes = measures.votes_for_tokens(by_votes, row["tokens"])
    other, right = _row(name, info, votes, draws, units, confidence)
    return {
        **compare(right, correct, units, confidence),
        "row": other["name"],
        "tokens": other["tokens"],
        "accuracy": other["accuracy"],
        "reached": by_votes[votes - 1] >= row["tokens"],
    }
