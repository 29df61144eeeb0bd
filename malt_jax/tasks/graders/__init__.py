"""Graders: numbers, LaTeX, choices, exact answers, sets and code (`graders.toml`)."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

from malt_jax.checks import nearest
from malt_jax.errors import UserError
from malt_jax.tasks.base import Grader

_TABLE = tomllib.loads(Path(__file__).with_name("graders.toml").read_text(encoding="utf-8"))
WRITTEN = {name: entry["written"] for name, entry in _TABLE.items() if "written" in entry}
"""A final answer as the prompts ask for it, by the graders that a user may choose."""
ANSWER_FORMATS = {name: _TABLE[name]["asks"] for name in WRITTEN}


def get_grader(name: str) -> Grader:
    """The grader called `name`: number, choice, exact, set or latex."""
    if name not in WRITTEN:
        known = ", ".join(WRITTEN)
        raise UserError(
            f"task.grader: no grader {name!r}; choose from {known}.{nearest(name, WRITTEN)}"
        )
    return benchmark_grader(name)[0]


def benchmark_grader(name: str, **settings: Any) -> tuple[Grader, str]:
    """Any grader of the table with what prompts ask for; `settings` go to its class."""
    entry = _TABLE[name]
    module, _, kind = entry["made_by"].partition(":")
    build = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    return build(**entry.get("settings", {}), **settings), entry["asks"]
