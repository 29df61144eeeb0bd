"""A benchmark's worker process: its last line of output is its result, or why it refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from malt_jax.errors import UserError

REFUSED = "refused"


def start(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs a module in a process of its own and returns its result."""
    # Standard error is not captured, so that progress and tracebacks reach the terminal.
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    if REFUSED in result:
        raise UserError(result[REFUSED])
    return result


def answer(measure: Callable[[dict[str, Any]], dict[str, Any]], job: str) -> dict[str, Any]:
    """The worker's side of `start`: measures, and passes a refusal on."""
    try:
        return measure(json.loads(job))
    except UserError as error:
        return {REFUSED: str(error)}
