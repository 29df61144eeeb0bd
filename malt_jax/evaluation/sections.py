"""The sections below the table of results: seeds, turns, levels, calibration, failures, records."""

from __future__ import annotations

from typing import NamedTuple

from malt_jax.evaluation import cells
from malt_jax.evaluation.schema import McNemar, Results
from malt_jax.evaluation.table import Table, numbers, texts


class Section(NamedTuple):
    """A table under a heading, with a note below it."""

    heading: str
    table: Table
    note: str = ""


def sections(results: Results) -> list[Section]:
    """Every section that these results have something to say in."""
    found = [
        by_seed(results),
        by_turn(results),
        by_level(results),
        calibration(results),
        failures(results),
        records(results),
    ]
    # Where a function has nothing to say, its table has no rows.
    return [section for section in found if section.table.rows]


def titles(results: Results) -> dict[str, str]:
    """The label of each system in the table, without its votes."""
    # The ending is the one that `results` gives to the label of a voted row.
    return {
        row["system"]: row["label"].removesuffix(f", vote of {row['votes']}")
        for row in results["systems"]
    }


def by_seed(results: Results) -> Section:
    """Every comparison under each seed alone, where several seeds are pooled."""
    seeds = [str(seed) for seed in results["seeds"]]
    rows = []
    for row in results["systems"] if len(seeds) > 1 else ():
        for other, test in row["tests"].items():
            alone = [_changes(test["seeds"][seed]) for seed in seeds]
            pooled = cells.probability(test["p_pooled"])
            rows.append([row["label"], other, cells.points(test["delta"]), *alone, pooled])
    columns = texts("system", "against") + numbers("difference")
    columns += numbers(*(f"seed {seed}" for seed in seeds), "p of summed flips")
    return Section(
        "By seed",
        Table(columns, rows),
        "By seed: the number of questions that changed from wrong to right and from right to "
        "wrong, and the exact McNemar test. The last column is that test on the flips of all seeds "
        "together, as if a question's answers under different seeds were independent; the table "
        "above does not assume this.",
    )


def _changes(test: McNemar) -> str:
    # A minus sign and no hyphen, as `cells.points` writes it.
    p = cells.probability(test["p"])
    return f"+{test['wrong_to_right']} −{test['right_to_wrong']}, p {p}"


def by_turn(results: Results) -> Section:
    """Flips between the answers that the turns of a system state."""
    names = titles(results)
    rows = []
    for entry in results["turns"]:
        path = [f"{turn['role']} {cells.percent(turn['accuracy'])}" for turn in entry["accuracy"]]
        for flip in entry["flips"]:
            changes = [str(flip["wrong_to_right"]), str(flip["right_to_wrong"])]
            ends = [flip["from"], flip["to"]]
            label = names[entry["system"]]
            rows.append([label, " → ".join(path), *ends, *changes, str(entry["draws"])])
    columns = texts("system", "accuracy % of each turn's answer", "from", "to")
    columns += numbers("wrong→right", "right→wrong", "draws")
    return Section(
        "By turn",
        Table(columns, rows),
        "Counted over all draws of a system. A row of the results without a vote uses the first "
        "draw of each question, so the two may differ a little.",
    )


def by_level(results: Results) -> Section:
    """Accuracy by difficulty, or by whatever else the task calls the level of a question."""
    levels = results["levels"]
    rows = [
        [row["label"], *(cells.percent(one["accuracy"][row["name"]]) for one in levels.values())]
        for row in results["systems"]
        if levels
    ]
    columns = texts("system")
    columns += numbers(*(f"{level} ({one['questions']})" for level, one in levels.items()))
    note = "Accuracy in percent; the number of questions in brackets."
    return Section("By level", Table(columns, rows), note)


def calibration(results: Results) -> Section:
    """Whether the value of a node, on held-out trees, predicts the rewards of a further branch."""
    rows = [
        [
            role,
            str(one["outcomes"]),
            "not defined" if one["auc"] is None else f"{one['auc']:.2f}",
            f"{one['brier']:.3f}",
            f"{one['brier_base']:.3f}",
            ", ".join(f"{b['predicted']:.2f}: {cells.percent(b['observed'])}" for b in one["bins"]),
        ]
        for role, one in results["calibration"].items()
    ]
    columns = texts("role") + numbers("outcomes", "AUC", "Brier", "Brier of the mean")
    return Section(
        "Do values predict success?",
        Table(columns + texts("value: % right"), rows),
        "Untrained trees of held-out questions. Each child branch is held out in turn: the mean "
        "value of the other branches predicts its rewards. An AUC of 0.5 and the Brier score of "
        "always predicting the mean are chance.",
    )


def failures(results: Results) -> Section:
    """Draws without an answer, draws cut at the limit, tied votes, and the time taken."""
    rows = [
        [
            row["label"],
            str(row["unparsed"]),
            str(row["truncated"]),
            str(row["ties"]),
            "" if row["seconds"] is None else cells.seconds(row["seconds"]),
        ]
        for row in results["systems"]
    ]
    columns = texts("system")
    columns += numbers("answers not parsed", "draws cut at the limit", "ties", "seconds")
    return Section("Failures and time", Table(columns, rows), "Seconds are per question.")


def records(results: Results) -> Section:
    """Hashes of the files of draws from which everything above was counted."""
    rows = [[file, digest] for file, digest in results["records"].items()]
    return Section("Records", Table(texts("file", "SHA-256"), rows))
