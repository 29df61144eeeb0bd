"""A measurement in a process of its own: it prints its result, or why it was refused, last.

python -m malt_jax.bench.worker sampler_peer '{"model": DIR, ...}'
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from malt_jax.errors import UserError

REFUSED = "refused"


def measured_apart(module: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What `measure(job)` of a module of this folder returns in a process of its own."""
    # Standard error is not captured, so that progress and tracebacks reach the terminal.
    command = [sys.executable, "-m", __name__, module, json.dumps(job)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as worker:
        try:
            assert worker.stdout is not None
            output = worker.stdout.read()  # `communicate` would close the worker's input
        except BaseException:
            worker.kill()
            raise
    if worker.returncode:
        raise subprocess.CalledProcessError(worker.returncode, command)
    result = json.loads(output.splitlines()[-1])
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


def _end_with_parent() -> None:
    """Ends this process when the one that holds the other end of its input is gone.

    Otherwise a measurement whose parent was killed would go on, beside the next one.
    """
    while os.read(sys.stdin.fileno(), 1024):  # not `sys.stdin.read`, which would hold a lock
        pass
    os._exit(1)


if __name__ == "__main__":
    if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    main(*sys.argv[1:])
