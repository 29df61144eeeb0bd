"""Every logged number: one line of metrics.jsonl, one TensorBoard point, a tracker if asked for.

Rule on resuming: a step that is computed again is logged again, and its old line goes. So a series
(one stage, round, role and phase) is opened at the step it starts or goes on from; its lines at
that step and beyond are dropped, in TensorBoard too, and all other lines stay.
"""

from __future__ import annotations

import importlib
import math
import secrets
import time
from dataclasses import dataclass
from typing import Any

from malt_jax.errors import UserError
from malt_jax.storage.atomic import write_bytes
from malt_jax.storage.jsonl import append_lines, encode, read_lines, recover
from malt_jax.storage.rundir import RunDir


class Metrics:
    """The metrics of a run. `tracker` ("wandb" or "trackio") sends every number there as well."""

    def __init__(self, run: RunDir, tracker: str | None = None):
        self._run = run
        self._writers: list[Any] = []
        recover(run.metrics)
        self._tracker = _start_tracker(tracker, run) if tracker else None

    def series(
        self,
        stage: str,
        round: int = 0,
        role: str | None = None,
        phase: str | None = None,
        start: int = 0,
    ) -> Series:
        """Opens a series that is about to log step `start` and what follows."""
        from tensorboardX import SummaryWriter

        key = {"stage": stage, "round": round, "role": role, "phase": phase}
        self._drop(key, start)
        # A folder a series: TensorBoard purges resumed steps by folder, and compares roles by it.
        name = "/".join(part for part in (stage, f"{round:03d}", role, phase) if part)
        writer = SummaryWriter(
            str(self._run.events / name),
            purge_step=start,
            filename_suffix=f".{secrets.token_hex(4)}",  # its own names repeat within a second
        )
        self._writers.append(writer)
        return Series(self._run, key, name, writer, self._tracker)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        if self._tracker:
            self._tracker.finish()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self, key: dict[str, Any], start: int) -> None:
        if not self._run.metrics.exists():
            return
        lines = list(read_lines(self._run.metrics))
        kept = [
            line for line in lines if not (key.items() <= line.items() and line["step"] >= start)
        ]
        if len(kept) < len(lines):
            write_bytes(self._run.metrics, b"".join(map(encode, kept)))


@dataclass(frozen=True)
class Series:
    """One curve per number: logs at rising steps. Made by `Metrics.series`."""

    run: RunDir
    key: dict[str, Any]
    name: str
    writer: Any
    tracker: Any

    def log(self, step: int, **numbers: float) -> None:
        """Logs `numbers` at `step`. NaN and infinity, which JSON lacks, become null."""
        floats = {name: float(value) for name, value in numbers.items()}
        finite = {name: value for name, value in floats.items() if math.isfinite(value)}
        line = {"time": time.time(), **self.key, "step": step, **dict.fromkeys(floats), **finite}
        # Not flushed to the disk: a lost line costs a point of a curve, a flush costs every step.
        append_lines(self.run.metrics, [line], durable=False)
        for name, value in finite.items():
            self.writer.add_scalar(name, value, step)
        if self.tracker:
            self.tracker.log({f"{self.name}/{name}": value for name, value in finite.items()})


def _start_tracker(name: str, run: RunDir) -> Any:
    try:
        tracker = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"tracker {name!r}: not installed; `pip install {name}`.") from error
    tracker.init(project="malt", name=run.path.name, config=run.config, resume="allow")
    return tracker
