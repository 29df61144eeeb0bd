"""A measurement in a process of its own: it prints its result, or why it was refused, last.

python -m malt_jax.bench.worker sampler_peer '{"model": DIR, ...}'
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from malt_jax.errors import UserError

REFUSED = "refused"


def measured_apart(module: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What `measure(job)` of a module of this folder returns in a process of its own."""
    # Standard error is not captured, so that progress and tracebacks reach the terminal.
    command = [sys.executable, "-m", __name__, module, json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    if REFUSED in result:
        raise UserError(result[REFUSED])
    return result


def no_peer(job: Mapping[str, Any], packages: Sequence[str]) -> str | None:
    """Why the peer is not measured; None if it can be."""
    if job["no_peer"]:
        return "not run: asked not to"
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    return f"not run: {', '.join(missing)}" if missing else None


def beside_tunix(module: str, job: Mapping[str, Any], tokens_per_s: float) -> dict[str, Any]:
    """What google-tunix's process measured and our ratio to it, or why nothing was measured."""
    if reason := no_peer(job, ("tunix", "qwix")):
        return {"tunix": reason}
    try:
        found = measured_apart(module, job)
    # tunix runs few models, and what it cannot do must not lose the other measurements.
    except UserError as error:
        return {"tunix": f"not run: {error}"}
    except subprocess.CalledProcessError as error:
        return {"tunix": f"not run: its process ended with status {error.returncode}"}
    ratio = tokens_per_s / found["tokens_per_s"]
    return {"tunix": found, "tunix_tokens_per_s": found["tokens_per_s"], "ratio_to_tunix": ratio}


def main(module: str, job: str) -> None:
    try:
        result = importlib.import_module(f"malt_jax.bench.{module}").measure(json.loads(job))
    except UserError as error:
        result = {REFUSED: str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
