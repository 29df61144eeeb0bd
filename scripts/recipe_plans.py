"""Plans the recipes for TPUs and GPUs and writes each plan's figures into the recipe's header.

    python scripts/recipe_plans.py                      # headers again, from docs/results/plans
    python scripts/recipe_plans.py llama31_8b_gsm8k     # plans it first: minutes, needs libtpu
    python scripts/recipe_plans.py llama31_8b_h100      # an hour, needs the extra plan-gpu

Plans are kept in docs/results/plans/NAME.json. This script writes the part of a header that begins
with "# The plan of" or "# Not yet planned" and ends at the first line that is no comment.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from textwrap import wrap
from typing import Any

from malt_jax.planning.chips import CHIPS

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "results" / "plans"
GIB = 2**30
AXES = ("data", "fsdp", "expert", "tensor")
"""Mesh axes in the order of the header; only a mixture of experts has `expert`."""
TOPOLOGY = re.compile(r"malt plan --config \S+ --topology (\S+)")
WRITTEN = re.compile(r"^# (?:The plan of|Not yet planned) .*?(?=^[^#])", re.MULTILINE | re.DOTALL)


def main(names: list[str]) -> None:
    for name in names:
        plan_recipe(name)
    for kept in sorted(KEPT.glob("*.json")):
        recipe = recipe_of(kept)
        recipe.write_text(with_header(recipe.read_text(), json.loads(kept.read_text())))


def recipe_of(kept: Path) -> Path:
    return ROOT / "configs" / f"{kept.stem}.yaml"


def plan_recipe(name: str) -> None:
    """Runs `malt plan --json` for the topology in the recipe's header, and keeps the plan."""
    recipe = ROOT / "configs" / f"{name}.yaml"
    found = TOPOLOGY.search(recipe.read_text())
    if found is None:
        raise SystemExit(f"{recipe}: its header names no `malt plan ... --topology`.")
    words = ["plan", "--config", str(recipe), "--topology", found[1], "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "malt_jax.cli", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    plan = json.loads(done.stdout.splitlines()[-1])
    plan["made"] = {
        "date": datetime.now(UTC).date().isoformat(),
        **{package: version(package) for package in ("jax", compiler_of(found[1]))},
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(plan, indent=1) + "\n")


def compiler_of(topology: str) -> str:
    """The package whose compiler makes the plan."""
    return "libtpu" if CHIPS[topology.partition(":")[0]].platform == "tpu" else "jax-cuda13-plugin"


def with_header(text: str, plan: dict[str, Any]) -> str:
    """The recipe's text with the plan's figures in its header."""
    lines = "".join(f"# {line}\n" for line in header(plan))
    return WRITTEN.sub(lambda _: lines, text, count=1)


def header(plan: dict[str, Any]) -> list[str]:
    """The figures of a plan in a few lines of text."""
    made, target, mesh = plan["made"], plan["target"], plan["mesh"]
    depths, layers = plan["programs"][0]["compiled_at_layers"], plan["model"]["layers"]
    compiled = f"compiled with {' and '.join(map(str, depths))} of {layers} layers, extended to all"
    if depths == [layers]:
        compiled = f"compiled with all {layers} layers"
    compiler = compiler_of(target["name"])
    sizes = ", ".join(f"{p['name']} {p['total_bytes'] / GIB:.1f}" for p in plan["programs"])
    axes = ", ".join(f"{axis} {mesh[axis]}" for axis in AXES if axis in mesh)
    hours = ", ".join(map(in_hours, plan["stages"]))
    least = f" At least: {hours}." if hours else ""
    fits = "All fit." if plan["fits"] else "Not all fit."
    text = (
        f"The plan of {made['date']} (jax {made['jax']}, {compiler} {made[compiler]}), programs "
        f"{compiled}. Mesh: {axes}. GiB per chip, of "
        f"{target['chip_bytes'] / GIB:.2f}: weights {plan['model']['bytes_per_chip'] / GIB:.1f}; "
        f"{sizes}. {fits}{least}"
    )
    return wrap(text, 98)


def in_hours(stage: dict[str, Any]) -> str:
    """A stage's hours: the lower bound, and that at the plan's assumed efficiency if it has one."""
    hours = f"{stage['name']} {stage['hours']:.2f} h ({stage['chip_hours']:.0f} chip-hours"
    at = stage.get("hours_at_efficiency")
    return hours + (f"; {at:.2f} h at the assumed efficiency)" if at else ")")


if __name__ == "__main__":
    main(sys.argv[1:])
