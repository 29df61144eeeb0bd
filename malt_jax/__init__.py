"""malt-jax: multi-agent LLM training (MALT, arXiv 2412.01928) in pure JAX."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "search": "malt_jax.algorithm",
    "label": "malt_jax.algorithm",
    "train": "malt_jax.algorithm",
    "load_model": "malt_jax.models.model",
    "Model": "malt_jax.models.model",
    "Forest": "malt_jax.tree.node",
    "Node": "malt_jax.tree.node",
    "Tree": "malt_jax.tree.node",
    "RoleData": "malt_jax.data.role_data",
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
