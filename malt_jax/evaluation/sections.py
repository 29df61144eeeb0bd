"""The sections below the table of results: seeds, turns, levels, measures, failures, records."""

from __future__ import annotations

from typing import NamedTuple

from malt_jax.evaluation import cells
from malt_jax.evaluation.measures import frontier
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
        any_draw_right(results),
        weighted_votes(results),
        equal_tokens(results),
        by_time(results),
        by_temperature(results),
        best_temperature(results),
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
        "Counted over the draws that every question has. A row of the results without a vote uses "
        "the first draw of each question, so the two may differ a little.",
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


def any_draw_right(results: Results) -> Section:
    """How often one of several draws is right, beside how often their vote is."""
    rows = [
        [
            row["label"],
            str(row["draws"]),
            cells.percent(row["accuracy"]),
            cells.percent(row["pass_at_k"]),
            cells.points(row["pass_at_k"] - row["accuracy"]),
        ]
        for row in results["systems"]
        if row["votes"] > 1 and "pass_at_k" in row  # earlier versions did not estimate it
    ]
    return Section(
        "One of k right",
        Table(texts("system") + numbers("draws", "vote %", "pass@k %", "left to gain"), rows),
        "pass@k: the chance that one of as many draws as vote is right, by the unbiased estimate "
        "from all draws. What a perfect choice among the draws would gain over their vote; less "
        "than 0 where the draws that vote are luckier than the others.",
    )


def weighted_votes(results: Results) -> Section:
    """Votes weighted by the verdicts of critiques, beside plain ones."""
    rows = [
        [
            row["label"],
            cells.percent(row["accuracy"]),
            cells.percent(found["accuracy"]),
            *_flips_and_p(found),
        ]
        for row in results["systems"]
        if (found := row.get("weighted"))
    ]
    columns = texts("system") + numbers("vote %", "weighted vote %")
    return Section(
        "Votes weighted by the verifier",
        Table([*columns, *numbers("wrong→right", "right→wrong", "p")], rows),
        "Each draw votes with how far its own critique supports its answer: the probability of the "
        "critique's verdict, without further calls. The test against the plain vote is not part of "
        "the correction above.",
    )


def equal_tokens(results: Results) -> Section:
    """Every row against the single agent that generates as many tokens."""
    rows = [
        [
            row["label"],
            f"{row['tokens']:.0f}",
            cells.percent(row["accuracy"]),
            found["row"] + ("" if found["reached"] else " (all its draws)"),
            f"{found['tokens']:.0f}",
            cells.percent(found["accuracy"]),
            cells.points(found["delta"]),
            cells.points_interval(found["delta_interval"]),
            *_flips_and_p(found),
        ]
        for row in results["systems"]
        if (found := row.get("equal_tokens"))
    ]
    columns = texts("system") + numbers("tokens", "accuracy %") + texts("against")
    columns += numbers("tokens", "accuracy %", "difference", "interval")
    return Section(
        "At equal tokens",
        Table([*columns, *numbers("wrong→right", "right→wrong", "p")], rows),
        "The single agent votes over the fewest draws that generate at least as many tokens per "
        "question. Where it has too few draws all of them vote, and a baseline such as sa@27 draws "
        "more. These tests are not part of the correction above.",
    )


def _flips_and_p(test: McNemar) -> list[str]:
    changes = [str(test["wrong_to_right"]), str(test["right_to_wrong"])]
    return [*changes, cells.probability(test["p"])]


def by_time(results: Results) -> Section:
    """Accuracy against the wall-clock time per question, the fastest row first."""
    timed = {row["name"]: row for row in results["systems"] if row["seconds"] is not None}
    points = {name: (row["seconds"] or 0.0, row["accuracy"]) for name, row in timed.items()}
    best = frontier(points)
    rows = [
        [
            timed[name]["label"],
            cells.seconds(points[name][0]),
            cells.percent(points[name][1]),
            "yes" if name in best else "",
        ]
        for name in sorted(points, key=lambda name: points[name][0])
    ]
    return Section(
        "Accuracy against time",
        Table(texts("system") + numbers("seconds", "accuracy %") + texts("frontier"), rows),
        "Wall-clock seconds per question at the batches of this evaluation. Frontier: no faster "
        "row is as accurate.",
    )


def by_temperature(results: Results) -> Section:
    """Accuracy of each system by temperature, where temperatures were swept."""
    found: dict[str, dict[float, str]] = {}
    for row in results["systems"]:
        if (t := row.get("temperature")) is not None:
            label = row["label"].replace(f", T={t:g}", "")
            bounds = cells.interval(row["interval"])
            found.setdefault(label, {})[t] = f"{cells.percent(row['accuracy'])} ({bounds})"
    swept = sorted({t for by_t in found.values() for t in by_t})
    rows = [
        [label, *(by_t.get(t, "") for t in swept)]
        for label, by_t in found.items()
        if len(swept) > 1
    ]
    columns = texts("system") + numbers(*(f"T={t:g}" for t in swept))
    note = "Accuracy in percent, with its interval."
    return Section("By temperature", Table(columns, rows), note)


def best_temperature(results: Results) -> Section:
    """Every row of a sweep against the single agent at the temperature that suits it best."""
    rows = [
        [
            row["label"],
            cells.percent(row["accuracy"]),
            found["row"],
            cells.percent(found["accuracy"]),
            cells.points(found["delta"]),
            cells.points_interval(found["delta_interval"]),
            *_flips_and_p(found),
        ]
        for row in results["systems"]
        if (found := row.get("best_single_agent"))
    ]
    columns = texts("system") + numbers("accuracy %") + texts("against")
    columns += numbers("accuracy %", "difference", "interval", "wrong→right", "right→wrong", "p")
    return Section(
        "Against the single agent's best temperature",
        Table(columns, rows),
        "The single agent of at most as many calls that is most accurate here, whatever its "
        "temperature. Being chosen on these questions favours it. These tests are not part of the "
        "correction above.",
    )


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
    """Draws without an answer, draws cut at the limit, tied votes, and the time taken.

    Thinking models have a column more: draws with a thought that was never closed. So have
    evaluations that stop when a vote is certain: draws that were left out.
    """
    thinks = any("unclosed" in row for row in results["systems"])
    stops = any("left_out" in row for row in results["systems"])
    rows = [
        [
            row["label"],
            str(row["unparsed"]),
            str(row["truncated"]),
            *([str(row.get("unclosed", 0))] if thinks else []),
            *([str(row.get("left_out", 0))] if stops else []),
            str(row["ties"]),
            "" if row["seconds"] is None else cells.seconds(row["seconds"]),
        ]
        for row in results["systems"]
    ]
    columns = texts("system")
    columns += numbers("answers not parsed", "draws cut at the limit")
    columns += numbers(*["thoughts not closed"] * thinks, *["draws left out"] * stops)
    columns += numbers("ties", "seconds")
    note = "Seconds are per question."
    if stops:
        note += (
            " Draws were left out where no vote could change: calls, tokens and seconds are those "
            "of all draws, tokens and seconds by the mean of the draws that every question has."
        )
    return Section("Failures and time", Table(columns, rows), note)


def records(results: Results) -> Section:
    """Hashes of the files of draws from which everything above was counted."""
    rows = [[file, digest] for file, digest in results["records"].items()]
    return Section("Records", Table(texts("file", "SHA-256"), rows))
