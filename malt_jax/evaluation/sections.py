"""What `results.md` says below its table: seeds, turns, levels, calibration, failures, records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from malt_jax.evaluation.cells import (
    Column,
    markdown_table,
    percent,
    points,
    probability,
    seconds,
)

Results = Mapping[str, Any]
Section = tuple[str, str, str]
"""Heading, table, a note below it."""
TURNS_NOTE = (
    "Counted over all draws of a system. A row of the results without a vote takes the first draw "
    "of each question, so the two may differ a little."
)


def sections(results: Results) -> list[Section]:
    """Those there is something to say in."""
    made: tuple[Callable[[Results], Section | None], ...] = (
        _seeds,
        _turns,
        _levels,
        _calibration,
        _failures,
        _records,
    )
    return [section for make in made if (section := make(results))]


def titles(results: Results) -> dict[str, str]:
    """System -> its label in the table, without votes."""
    return {
        row["system"]: row["label"].removesuffix(f", vote of {row['votes']}")
        for row in results["systems"]
    }


def _text(heading: str) -> Column:
    return Column(heading, number=False)


def _seeds(results: Results) -> Section | None:
    """Every comparison under each seed alone, where several are pooled."""
    seeds = [str(seed) for seed in results["seeds"]]
    if len(seeds) < 2:
        return None
    lines = []
    for row in results["systems"]:
        for other, test in row["tests"].items():
            alone = [test["seeds"][seed] for seed in seeds]
            cells = [
                f"+{one['wrong_to_right']} −{one['right_to_wrong']}, p {probability(one['p'])}"
                for one in alone
            ]
            pooled = probability(test["p_pooled"])
            lines.append([row["label"], other, points(test["delta"]), *cells, pooled])
    head = [_text("system"), _text("against"), Column("difference")]
    head += [Column(f"seed {seed}") for seed in seeds] + [Column("p of summed flips")]
    note = (
        "By seed: questions turned from wrong to right and from right to wrong, and the exact "
        "McNemar test. The last column is that test on the flips of all seeds together, which "
        "takes a question's answers under different seeds for independent; the table above does "
        "not."
    )
    return "By seed", markdown_table(head, lines), note


def _turns(results: Results) -> Section | None:
    """Flips between the answers the turns of a system state."""
    names = titles(results)
    lines = [
        [
            names[entry["system"]],
            " → ".join(f"{turn['role']} {percent(turn['accuracy'])}" for turn in entry["accuracy"]),
            flip["from"],
            flip["to"],
            str(flip["wrong_to_right"]),
            str(flip["right_to_wrong"]),
            str(entry["draws"]),
        ]
        for entry in results["turns"]
        for flip in entry["flips"]
    ]
    if not lines:
        return None
    head = [_text("system"), _text("accuracy % of each turn's answer"), _text("from"), _text("to")]
    head += [Column("wrong→right"), Column("right→wrong"), Column("draws")]
    return "By turn", markdown_table(head, lines), TURNS_NOTE


def _levels(results: Results) -> Section | None:
    """Accuracy by difficulty, or by what else the task tells its questions apart."""
    levels = results["levels"]
    if not levels:
        return None
    lines = [
        [row["label"], *(percent(found["accuracy"][row["name"]]) for found in levels.values())]
        for row in results["systems"]
    ]
    head = [_text("system")]
    head += [Column(f"{level} ({found['questions']})") for level, found in levels.items()]
    note = "Accuracy in percent; the number of questions in brackets."
    return "By level", markdown_table(head, lines), note


def _calibration(results: Results) -> Section | None:
    """Whether a node's value, on held-out trees, tells how its other branches will fare."""
    lines = [
        [
            role,
            str(found["outcomes"]),
            "not defined" if found["auc"] is None else f"{found['auc']:.2f}",
            f"{found['brier']:.3f}",
            f"{found['brier_base']:.3f}",
            ", ".join(f"{b['predicted']:.2f}: {percent(b['observed'])}" for b in found["bins"]),
        ]
        for role, found in results["calibration"].items()
    ]
    if not lines:
        return None
    head = [_text("role"), *map(Column, ("outcomes", "AUC", "Brier", "Brier of the mean"))]
    head.append(_text("value: % right"))
    note = (
        "Untrained trees of held-out questions. Each child branch is set aside in turn: the mean "
        "value of the others predicts its rewards. AUC 0.5 and the Brier score of always saying "
        "the mean are chance."
    )
    return "Do values predict success?", markdown_table(head, lines), note


def _failures(results: Results) -> Section:
    """What went wrong in producing answers, and what they took."""
    lines = [
        [
            row["label"],
            str(row["unparsed"]),
            str(row["truncated"]),
            str(row["ties"]),
            "" if row["seconds"] is None else seconds(row["seconds"]),
        ]
        for row in results["systems"]
    ]
    head = [_text("system"), *map(Column, ("answers not parsed", "draws cut at the limit"))]
    head += [Column("ties"), Column("seconds")]
    return "Failures and time", markdown_table(head, lines), "Seconds are per question."


def _records(results: Results) -> Section | None:
    """Hashes of the answers everything above was counted from."""
    if not results["records"]:
        return None
    lines = [[file, digest] for file, digest in results["records"].items()]
    return "Records", markdown_table([_text("file"), _text("SHA-256")], lines), ""
