"""Which software made a run."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import malt_jax

_PACKAGES = (
    *("malt-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("transformers", "tokenizers", "numpy"),
)


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit the package runs from, None when it does not run from a checkout."""
    root = Path(malt_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
