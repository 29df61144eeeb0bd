"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from malt_jax.progress import counted

GIB = 2**30
# Columns of words, aligned to the left; those of numbers go to the right.
TEXT = ("program", "stage", "computes", "collectives", "fits")
Columns = dict[str, Callable[[dict[str, Any]], str]]
"""How each column shows an item."""
NO_RATES = (
    "The speed of this device is unknown, so no hours are given: measure it with "
    "`malt bench sampler` and `malt bench train`."
)


def tables(plan: dict[str, Any]) -> Iterator[Any]:
    """`rich` renderables: the run in words, its programs, its stages, and what would fit."""
    yield from _summary(plan)
    if "bases" in plan:
        yield from _bases(plan["bases"])
    yield _memory(plan)
    yield _calls(plan)
    yield _stages(plan) if plan["stages"] else NO_RATES
    yield from _verdict(plan)
    for other in plan.get("others", []):
        yield from tables(other)


def _bases(bases: dict[str, Any]) -> Iterator[str]:
    for model in bases["models"]:
        size = f"{model['bytes'] / GIB:.2f} GiB"
        yield f"base model of the {', '.join(model['roles'])}: {model['path']}, {size}"
    if bases["together"]:
        yield "The base models are resident together."
    else:
        yield (
            "The base models do not fit together: one at a time is on the device, and a round of "
            f"the search reads their weights {counted(bases['reads'], 'time')}."
        )


def _summary(plan: dict[str, Any]) -> Iterator[str]:
    model, target, work, mesh = (plan[name] for name in ("model", "target", "work", "mesh"))
    axes = " x ".join(f"{name} {size}" for name, size in mesh.items() if name != "why")
    yield (
        f"model: {model['path']}, {model['parameters']:,} parameters, "
        f"{model['bytes_per_chip'] / GIB:.2f} GiB per chip"
    )
    chips = counted(target["chips"], "chip")
    part = "" if work["shard"] == "1/1" else f" (slice {work['shard']} of them)"
    yield f"target: {target['name']}, {chips}; mesh {axes}: {mesh['why']}"
    yield (
        f"search: {counted(work['train_questions'], 'question')}{part} x "
        f"{counted(work['rounds'], 'round')}, {work['tree_calls']:,} completions of "
        f"{work['tree_tokens']:,} tokens per round, at most {work['search_programs']} programs to "
        "compile"
    )
    yield (
        f"evaluation: {counted(work['eval_questions'], 'question')}, "
        f"at most {work['eval_calls']:,} completions of {work['eval_tokens']:,} tokens"
    )
    assumed = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in plan["assumptions"].items())
    guessed = ", and the numbers of questions" if work["questions_guessed"] else ""
    yield f"assumed: {assumed}{guessed}"
    if plan["not_counted"]:
        yield f"not counted: {', '.join(plan['not_counted'])}"


def _memory(plan: dict[str, Any]) -> Any:
    how = "an estimate: temporaries by formula, nothing compiled"
    if plan["compiled"]:
        # The same for all programs: the model, the target and `whole` decide it.
        depths, layers = plan["programs"][0]["compiled_at_layers"], plan["model"]["layers"]
        how = f"compiled with {' and '.join(map(str, depths))} of {layers} layers"
        how = f"compiled with all {layers} layers" if depths == [layers] else how
    fits = {True: "yes", False: "no", None: "unknown"}
    columns: Columns = {"program": lambda p: p["name"]}
    for part in ("resident", "arguments", "temporaries", "code", "total_bytes"):
        columns[part.removesuffix("_bytes")] = partial(_gib, part)
    columns["fits"] = lambda p: fits[p["fits"]]
    return _table(f"GiB per chip ({how})", columns, plan["programs"])


def _gib(part: str, program: dict[str, Any]) -> str:
    return f"{program.get(part, 0) / GIB:.2f}"


def _calls(plan: dict[str, Any]) -> Any:
    """What one call of each program does."""
    columns: Columns = {
        "program": lambda p: p["name"],
        "computes": lambda p: p["shape"],
        "TFLOP": lambda p: f"{p['flops'] / 1e12:.3g}",
        # Traffic in decimal units, as bandwidths are given; memory above in binary ones.
        "GB moved": lambda p: f"{p['bytes_moved'] / 1e9:.3g}" if "bytes_moved" in p else "",
        "collectives": lambda p: _collectives(p.get("collectives", {})),
        "seconds": lambda p: "" if p["seconds"] is None else f"{p['seconds']:.4f}",
    }
    return _table("one call", columns, plan["programs"])


def _collectives(found: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{round(total['count'])} {kind} {total['bytes'] / 1e9:.3g} GB"
        for kind, total in found.items()
    )


def _stages(plan: dict[str, Any]) -> Any:
    columns: Columns = {
        "stage": lambda stage: stage["name"],
        "hours": lambda stage: f"{stage['hours']:.2f} to {stage['hours_at_efficiency']:.2f}",
        "chip-hours": lambda stage: " to ".join(
            f"{hours * plan['target']['chips']:.1f}"
            for hours in (stage["hours"], stage["hours_at_efficiency"])
        ),
    }
    share = plan["assumptions"]["efficiency"]
    title = f"from the compiler's or the published rates to {share:.0%} of them"
    return _table(title, columns, plan["stages"])


def _table(title: str, columns: Columns, items: list[dict[str, Any]]) -> Any:
    """A `rich` table with one row per item; a column that stays empty is left out."""
    from rich.table import Table

    table = Table(title=title)
    for name, cell in columns.items():
        if any(map(cell, items)):
            table.add_column(name, justify="left" if name in TEXT else "right")
    for item in items:
        table.add_row(*(cell(item) for cell in columns.values() if any(map(cell, items))))
    return table


def _verdict(plan: dict[str, Any]) -> Iterator[str]:
    if all(program["fits"] is not False for program in plan["programs"]):
        memory = plan["target"]["chip_bytes"]
        known = f"The run fits {memory / GIB:.0f} GiB per chip." if memory else ""
        yield known or "The memory of this device is unknown."
    for program in plan["programs"]:
        if program["instead"]:
            yield f"{program['name']} does not fit; nearest that does: {program['instead']}"
