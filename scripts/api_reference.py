"""The public Python names with their docstrings: `docs/api.md`.

python scripts/api_reference.py > docs/api.md
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from types import FunctionType
from typing import Any

import malt_jax

MORE = (
    ("malt_jax.tasks", "get_task"),
    ("malt_jax.tasks", "task_names"),
    ("malt_jax.tasks.base", "Grade"),
    ("malt_jax.tasks.base", "Grader"),
    ("malt_jax.tasks.rewards", "Rewarded"),
    ("malt_jax.tasks.custom", "from_file"),
    ("malt_jax.tasks.custom", "from_function"),
    ("malt_jax.pipeline", "Answer"),
    ("malt_jax.pipeline", "Turn"),
    ("malt_jax.config", "load"),
    ("malt_jax.config", "Config"),
    ("malt_jax.errors", "UserError"),
)
"""Public names beside those of `malt_jax` itself."""
MEMBERS = (FunctionType, classmethod, staticmethod, property)


def reference() -> str:
    """The whole page."""
    own = [("malt_jax", name) for name in sorted(malt_jax._EXPORTS)]
    parts = [
        "# Reference",
        "Written by `scripts/api_reference.py` from the docstrings. Axes: B batch, T time, V "
        "vocabulary, Q questions. Config fields and their meaning: `malt fields`.",
    ]
    for module, name in (*own, *MORE):
        parts.append(_entry(module, name, getattr(import_module(module), name)))
    return "\n\n".join(parts) + "\n"


def _entry(module: str, name: str, thing: Any) -> str:
    parts = [f"## {module}.{name}", _call(name, thing), inspect.getdoc(thing) or ""]
    if inspect.isclass(thing):
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and isinstance(value, MEMBERS):
                parts.append(f"### {name}.{attribute}")
                parts += [_call(attribute, value), inspect.getdoc(value) or ""]
    return "\n\n".join(part for part in parts if part)


def _call(name: str, thing: Any) -> str:
    """How it is called, as a block; nothing for what is not called."""
    if isinstance(thing, property):
        return ""
    try:
        signature = inspect.signature(getattr(thing, "__func__", thing))
    except (TypeError, ValueError):
        return ""
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    text = str(signature.replace(parameters=parameters))
    text = re.sub(r"<factory>|<function \S*<lambda> at \w+>", "...", text.replace("'", ""))
    return f"```py\n{name}{text}\n```"


if __name__ == "__main__":
    print(reference(), end="")
