"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from malt_jax.progress import counted

GIB = 2**30


def tables(plan: dict[str, Any]) -> Iterator[Any]:
    """`rich` renderables: the run in words, its programs, its stages, what would fit."""
    yield from _head(plan)
    yield _programs(plan)
    yield _work(plan)
    if plan["stages"]:
        yield _stages(plan)
    else:
        yield "No rate is known for this device, so no hours: measure it with `malt bench`."
    yield from _verdict(plan)


def _head(plan: dict[str, Any]) -> Iterator[str]:
    model, target, work, mesh = (plan[name] for name in ("model", "target", "work", "mesh"))
    axes = " x ".join(f"{name} {size}" for name, size in mesh.items() if name != "why")
    yield (
        f"model: {model['path']}, {model['parameters']:,} parameters, "
        f"{model['bytes_per_chip'] / GIB:.2f} GiB a chip"
    )
    chips = counted(target["chips"], "chip")
    yield f"target: {target['name']}, {chips}; mesh {axes}: {mesh['why']}"
    yield (
        f"search: {counted(work['train_questions'], 'question')} x "
        f"{counted(work['rounds'], 'round')}, "
        f"{work['tree_calls']:,} completions of {work['tree_tokens']:,} tokens a round"
    )
    yield (
        f"evaluation: {counted(work['eval_questions'], 'question')}, "
        f"at most {work['eval_calls']:,} completions of {work['eval_tokens']:,} tokens"
    )
    assumed = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in plan["assumptions"].items())
    yield f"assumed: {assumed}"


def _programs(plan: dict[str, Any]) -> Any:
    from rich.table import Table

    depths = plan["programs"][0]["compiled_at_layers"]
    how = "by formula, nothing compiled"
    if plan["compiled"]:
        how = f"compiled with {' and '.join(map(str, depths))} of {plan['model']['layers']} layers"
    table = Table(title=f"GiB a chip ({how})")
    table.add_column("program")
    for column in ("resident", "arguments", "temporaries", "code", "total"):
        table.add_column(column, justify="right")
    table.add_column("fits")
    for program in plan["programs"]:
        names = ("resident", "arguments", "temporaries", "code", "total_bytes")
        sizes = (f"{program.get(name, 0) / GIB:.2f}" for name in names)
        fits = {True: "yes", False: "no", None: "unknown"}[program["fits"]]
        table.add_row(program["name"], *sizes, fits)
    return table


def _work(plan: dict[str, Any]) -> Any:
    """What a call of each program does; columns nobody can fill are left out."""
    from rich.table import Table

    columns = {
        "computes": lambda p: p["shape"],
        "TFLOP": lambda p: f"{p['flops'] / 1e12:.3g}",
        "GB moved": lambda p: f"{p['bytes_moved'] / 1e9:.3g}" if "bytes_moved" in p else "",
        "collectives": lambda p: _collectives(p.get("collectives", {})),
        "seconds": lambda p: "" if p["seconds"] is None else f"{p['seconds']:.4f}",
    }
    programs = plan["programs"]
    filled = {name: of for name, of in columns.items() if any(map(of, programs))}
    table = Table(title="a call", show_lines=False)
    table.add_column("program")
    for name in filled:
        table.add_column(name, justify="left" if name in ("computes", "collectives") else "right")
    for program in programs:
        table.add_row(program["name"], *(of(program) for of in filled.values()))
    return table


def _collectives(found: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{round(total['count'])} {kind} {total['bytes'] / 1e9:.3g} GB"
        for kind, total in found.items()
    )


def _stages(plan: dict[str, Any]) -> Any:
    from rich.table import Table

    bound = "at published rates or the compiler's, a lower bound"
    table = Table("stage", "hours", "chip-hours", title=bound)
    for stage in plan["stages"]:
        table.add_row(stage["name"], f"{stage['hours']:.2f}", f"{stage['chip_hours']:.1f}")
    return table


def _verdict(plan: dict[str, Any]) -> Iterator[str]:
    if plan["fits"]:
        known = plan["target"]["chip_bytes"]
        yield f"fits {known / GIB:.0f} GiB a chip." if known else "memory of the device: unknown."
    for program in plan["programs"]:
        if program["instead"]:
            yield f"{program['name']} does not fit; nearest that does: {program['instead']}"
