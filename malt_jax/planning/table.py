"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from malt_jax.progress import counted

GIB = 2**30
NO_RATES = (
    "The speed of this device is unknown, so no hours are given: measure it with "
    "`malt bench sampler` and `malt bench train`."
)


def tables(plan: dict[str, Any]) -> Iterator[Any]:
    """`rich` renderables: the run in words, its programs, its stages, and what would fit."""
    yield from _summary(plan)
    yield _memory(plan)
    yield _calls(plan)
    yield _stages(plan) if plan["stages"] else NO_RATES
    yield from _verdict(plan)


def _summary(plan: dict[str, Any]) -> Iterator[str]:
    model, target, work, mesh = (plan[name] for name in ("model", "target", "work", "mesh"))
    axes = " x ".join(f"{name} {size}" for name, size in mesh.items() if name != "why")
    yield (
        f"model: {model['path']}, {model['parameters']:,} parameters, "
        f"{model['bytes_per_chip'] / GIB:.2f} GiB per chip"
    )
    chips = counted(target["chips"], "chip")
    yield f"target: {target['name']}, {chips}; mesh {axes}: {mesh['why']}"
    yield (
        f"search: {counted(work['train_questions'], 'question')} x "
        f"{counted(work['rounds'], 'round')}, {work['tree_calls']:,} completions of "
        f"{work['tree_tokens']:,} tokens per round"
    )
    yield (
        f"evaluation: {counted(work['eval_questions'], 'question')}, "
        f"at most {work['eval_calls']:,} completions of {work['eval_tokens']:,} tokens"
    )
    assumed = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in plan["assumptions"].items())
    yield f"assumed: {assumed}"


def _memory(plan: dict[str, Any]) -> Any:
    from rich.table import Table

    how = "temporaries by formula, nothing compiled"
    if plan["compiled"]:
        depths = " and ".join(map(str, plan["programs"][0]["compiled_at_layers"]))
        how = f"compiled with {depths} of {plan['model']['layers']} layers"
    table = Table("program", title=f"GiB per chip ({how})")
    columns = ("resident", "arguments", "temporaries", "code", "total_bytes")
    for column in columns:
        table.add_column(column.removesuffix("_bytes"), justify="right")
    table.add_column("fits")
    for program in plan["programs"]:
        sizes = (f"{program.get(name, 0) / GIB:.2f}" for name in columns)
        fits = {True: "yes", False: "no", None: "unknown"}[program["fits"]]
        table.add_row(program["name"], *sizes, fits)
    return table


def _calls(plan: dict[str, Any]) -> Any:
    """What one call of each program does; a column that stays empty is left out."""
    from rich.table import Table

    columns = {
        "computes": lambda p: p["shape"],
        "TFLOP": lambda p: f"{p['flops'] / 1e12:.3g}",
        "GB moved": lambda p: f"{p['bytes_moved'] / 1e9:.3g}" if "bytes_moved" in p else "",
        "collectives": lambda p: _collectives(p.get("collectives", {})),
        "seconds": lambda p: "" if p["seconds"] is None else f"{p['seconds']:.4f}",
    }
    programs = plan["programs"]
    filled = {name: cell for name, cell in columns.items() if any(map(cell, programs))}
    table = Table("program", title="one call")
    for name in filled:
        table.add_column(name, justify="left" if name in ("computes", "collectives") else "right")
    for program in programs:
        table.add_row(program["name"], *(cell(program) for cell in filled.values()))
    return table


def _collectives(found: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{round(total['count'])} {kind} {total['bytes'] / 1e9:.3g} GB"
        for kind, total in found.items()
    )


def _stages(plan: dict[str, Any]) -> Any:
    from rich.table import Table

    bound = "lower bounds, at the compiler's or the published rates"
    table = Table("stage", "hours", "chip-hours", title=bound)
    for stage in plan["stages"]:
        table.add_row(stage["name"], f"{stage['hours']:.2f}", f"{stage['chip_hours']:.1f}")
    return table


def _verdict(plan: dict[str, Any]) -> Iterator[str]:
    if plan["fits"]:
        memory = plan["target"]["chip_bytes"]
        known = f"The run fits {memory / GIB:.0f} GiB per chip." if memory else ""
        yield known or "The memory of this device is unknown."
    for program in plan["programs"]:
        if program["instead"]:
            yield f"{program['name']} does not fit; nearest that does: {program['instead']}"
