"""malt-jax: multi-agent LLM training (MALT, arXiv 2412.01928) in pure JAX."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "load_model": "malt_jax.models.model",
    "Model": "malt_jax.models.model",
    "search": "malt_jax.tree.search",
    "Forest": "malt_jax.tree.records",
    "Question": "malt_jax.tasks.base",
    "Task": "malt_jax.tasks.base",
    "Pipeline": "malt_jax.pipeline",
}
"""Public name -> the module it lives in; `malt --help` needs none of it."""


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
