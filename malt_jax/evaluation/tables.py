"""The results as Markdown, LaTeX, CSV and a table for the terminal.

The first three have the same cells. Every row states its calls and generated tokens per question,
and is tested against the single agent that votes over the same number of calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from malt_jax import escape
from malt_jax.evaluation import cells
from malt_jax.evaluation.schema import PairedTest, Results, Row
from malt_jax.evaluation.sections import sections
from malt_jax.evaluation.table import Column, Table, numbers, texts

if TYPE_CHECKING:
    import rich.table


def columns(results: Results) -> list[Column]:
    """The columns of the table, one of them per seed if several are pooled."""
    return [
        *texts("system"),
        *numbers("calls", "tokens", "accuracy %", "interval"),
        *numbers(*(f"seed {seed}" for seed in _pooled_seeds(results))),
        *texts("against"),
        *numbers("difference", "interval", "wrong→right", "right→wrong", "p", "p (Holm)"),
    ]


def _pooled_seeds(results: Results) -> list[int]:
    """The seeds if there are several, otherwise none."""
    return results["seeds"] if len(results["seeds"]) > 1 else []


def results_table(results: Results) -> Table:
    """One line per row and test."""
    head = columns(results)
    lines = []
    for row in results["systems"]:
        # Every line repeats calls and tokens, so that none can be quoted without them.
        own = _cost_and_accuracy(row)
        own += [cells.percent(row["seeds"][str(seed)]) for seed in _pooled_seeds(results)]
        for other, test in row["tests"].items():
            equal = ", equal calls" if other == row["equal_calls_baseline"] else ""
            lines.append([*own, other + equal, *_test(test)])
        if not row["tests"]:
            lines.append(own + [""] * (len(head) - len(own)))
    return Table(head, lines)


def _cost_and_accuracy(row: Row) -> list[str]:
    return [
        row["label"],
        str(row["calls"]),
        f"{row['tokens']:.0f}",
        cells.percent(row["accuracy"]),
        cells.interval(row["interval"]),
    ]


def _test(test: PairedTest) -> list[str]:
    return [
        cells.points(test["delta"]),
        cells.points_interval(test["delta_interval"]),
        str(test["wrong_to_right"]),
        str(test["right_to_wrong"]),
        cells.probability(test["p"]),
        cells.probability(test["p_holm"]),
    ]


def caption(results: Results) -> str:
    """What the numbers of the table mean, in one paragraph."""
    seeds = _pooled_seeds(results)
    pooled = f", {len(seeds)} seeds pooled" if seeds else ""
    clusters = results.get("clusters")
    grouped = f" in {clusters} clusters" if clusters else ""
    over = _resampled(results)
    interval = f"bootstrap interval over {over}" if over else "Wilson interval"
    weights = (
        " Intervals and tests are over questions, with the trained weights of these seeds as they "
        "are; how much another training would differ, the seeds' columns say."
        if seeds
        else ""
    )
    swept = any("temperature" in row for row in results["systems"])
    baseline = results["baseline"] + (" at its own temperature" if swept else "")
    return (
        f"{results['questions']} questions{grouped}{pooled}. Calls and generated tokens are per "
        f"question. Accuracy with its {100 * results['confidence']:g}% {interval}; differences in "
        "percentage points on the same questions, with a paired bootstrap interval; p from the "
        f"{_test_name(results)}, two-sided, then with Holm's correction over all tests of the "
        f"table. Each system is tested against {baseline} and against the single agent "
        f"voting over the same number of calls.{weights}"
    )


def _test_name(results: Results) -> str:
    over = _resampled(results)
    return f"exact sign-flip test over {over}" if over else "exact McNemar test"


def _resampled(results: Results) -> str:
    """What intervals and tests take as independent, where it is more than a single answer."""
    if results.get("clusters"):
        return "clusters"
    return "questions" if _pooled_seeds(results) else ""


def facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The known facts of a run as names and texts; nested facts are joined, empty ones left out."""
    found = []
    for name, value in run.items():
        if isinstance(value, Mapping):
            parts = {key: str(part) for key, part in value.items() if part is not None}
            if "fingerprint" in parts:
                # Enough to tell two models apart in a line of text; results.json has all of it.
                parts["fingerprint"] = parts["fingerprint"][:16]
            value = ", ".join(parts.values())
        if value is not None and value != "":
            found.append((name.replace("_", " "), str(value)))
    return found


def to_markdown(results: Results) -> str:
    """The content of `results.md`."""
    run = ", ".join(f"{name}: {text}" for name, text in facts(results["run"]))
    parts = ["# Results", escape.markdown(run), results_table(results).markdown()]
    parts.append(escape.markdown(caption(results)))
    for section in sections(results):
        parts += [f"## {section.heading}", section.table.markdown(), section.note]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(results: Results) -> str:
    """The content of `results.tex`."""
    return f"% {escape.one_line(caption(results))}\n{results_table(results).latex()}\n"


def to_csv(results: Results) -> str:
    """The content of `results.csv`."""
    return results_table(results).csv()


def to_terminal(results: Results) -> rich.table.Table:
    """The table as `rich` prints it: one line per row, tested at equal calls."""
    lines, above = [], []
    for number, row in enumerate(results["systems"]):
        line = [*_cost_and_accuracy(row), "", ""]
        if test := row["tests"].get(row["equal_calls_baseline"]):
            line[-2:] = cells.points(test["delta"]), cells.probability(test["p_holm"])
            if test["p_holm"] < 0.05 and test["delta"] > 0:
                above.append(number)
        lines.append(line)
    head = numbers("calls", "tokens", "accuracy", "interval", "vs SA", "p (Holm)")
    caption = (
        "Accuracy in %. vs SA: points above the single agent voting over as many calls, "
        f"with p by the {_test_name(results)} after Holm's correction. Bold: above it, p < 0.05."
    )
    # At 80 columns a long name takes a second line, so that every number stays whole.
    return Table([*texts("system"), *head], lines).terminal(caption, above, whole_numbers=True)
