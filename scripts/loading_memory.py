"""Host memory that loading and exporting a checkpoint take beyond the weights themselves.

    python scripts/loading_memory.py DIR [--parts 8]

Loads the checkpoint on one device and split over several, and exports it, each in a process of its
own. Prints one JSON object per line: bytes of the weights and of the largest tensor, by how much
the process's private memory at its peak exceeded what it was before and the weights, which lie on
the CPU devices, and by how much it grew again while exporting. Pages of mapped files do not count:
the kernel takes them back. Stored float16 is loaded as bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

POLL = 0.002
"""Seconds between two looks at the process's memory."""


def private() -> int:
    """Bytes of this process's memory that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no RssAnon; this script needs Linux")


class Peak:
    """The most private memory while the block runs."""

    def __enter__(self) -> Peak:
        self.bytes, self._done = private(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, private())
            time.sleep(POLL)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure(folder: str, parts: int) -> dict[str, object]:
    import jax
    from jax.sharding import AxisType

    from malt_jax import load_model
    from malt_jax.export.role import export_role
    from malt_jax.models.checkpoint import Checkpoint

    mesh = None
    if parts > 1:
        mesh = jax.make_mesh((parts,), ("fsdp",), axis_types=(AxisType.Auto,))
    stored = Checkpoint(Path(folder))
    dtype = "float32" if stored.dtype(min(stored.names)) == "F32" else "bfloat16"
    jax.numpy.zeros(1).block_until_ready()
    before = private()
    with Peak() as loading:
        model = load_model(folder, dtype, mesh)
        jax.block_until_ready(model.params)
    loaded = private()
    with tempfile.TemporaryDirectory() as target, Peak() as exporting:
        export_role(model, None, Path(target) / "role")
    leaves = jax.tree.leaves(model.params)
    weights = sum(x.nbytes for x in leaves)
    return {
        "parts": parts,
        "dtype": dtype,
        "weights_mb": weights / 1e6,
        "largest_tensor_mb": max(x.nbytes for x in leaves) / 1e6,
        "loading_beyond_mb": (loading.bytes - before - weights) / 1e6,
        "exporting_beyond_mb": (exporting.bytes - loaded) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.folder, args.worker)))
        return
    for parts in (1, args.parts):
        flag = f"--xla_force_host_platform_device_count={parts}"
        subprocess.run(
            [sys.executable, __file__, args.folder, "--worker", str(parts)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
            check=True,
        )


if __name__ == "__main__":
    main()
