"""Logged numbers, written to metrics.jsonl, TensorBoard and, if configured, a tracker.

Rule on resuming: a step that is computed again is logged again and replaces its old line. So the
first step that a process logs in a series (one stage, round, role and phase) drops the older lines
of that series from that step on, in TensorBoard too; all other lines stay.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Mapping
from typing import Any

from malt_jax.errors import UserError
from malt_jax.storage.atomic import write_bytes
from malt_jax.storage.events import EventFile
from malt_jax.storage.jsonl import append_lines, encode, read_lines, recover
from malt_jax.storage.rundir import RunDir
from malt_jax.storage.writers import is_writer


class Metrics:
    """The metrics of a run; `tracker` ("wandb" or "trackio") also receives every number."""

    def __init__(self, run: RunDir, tracker: str | None = None):
        self._run = run
        self._series: dict[str, Series] = {}
        # A killed process may have left half a line, and `append_lines` refuses to write after one.
        recover(run.metrics)
        self._tracker = _start_tracker(tracker, run) if tracker and is_writer() else None

    def series(
        self, stage: str, round: int = 0, role: str | None = None, phase: str | None = None
    ) -> Series:
        """The series with these four names; its steps must increase."""
        key = {"stage": stage, "round": round, "role": role, "phase": phase}
        parts = [stage, f"{round:03d}", role, phase]
        name = "/".join(part for part in parts if part)  # train/000/generator/sft
        return self._series.setdefault(name, Series(self._run, key, name, self._tracker))

    def close(self) -> None:
        if self._tracker:
            self._tracker.finish()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Series:
    """One curve per logged name; made by `Metrics.series`."""

    def __init__(self, run: RunDir, key: dict[str, Any], name: str, tracker: Any):
        self._run, self._key, self._name, self._tracker = run, key, name, tracker
        self._events: EventFile | None = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs `numbers` at `step`. NaN and infinity, which JSON lacks, become null."""
        if not is_writer():
            return
        finite = {name: float(number) for name, number in numbers.items() if math.isfinite(number)}
        # `fromkeys` gives every name null and `finite` overwrites it, so a NaN stays visible as
        # null.
        line = {"time": time.time(), **self._key, "step": step, **dict.fromkeys(numbers), **finite}
        if self._events is None:
            self._drop_from(step)
            # One folder per series: TensorBoard hides resumed steps by folder, and compares roles.
            self._events = EventFile(self._run.events / self._name, step)
        # Not durable: a lost line costs one point of a curve, a flush would cost every step.
        append_lines(self._run.metrics, [line], durable=False)
        self._events.add(step, finite)
        if self._tracker:
            self._tracker.log({f"{self._name}/{name}": value for name, value in finite.items()})

    def _drop_from(self, start: int) -> None:
        if not self._run.metrics.exists():
            return
        lines = list(read_lines(self._run.metrics))
        # `<=` on items: the line has all four names of this series with the same values.
        key = self._key.items()
        kept = [line for line in lines if line.get("step", 0) < start or not key <= line.items()]
        if len(kept) < len(lines):
            write_bytes(self._run.metrics, b"".join(map(encode, kept)))


def _start_tracker(name: str, run: RunDir) -> Any:
    try:
        tracker = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"tracker {name!r}: not installed; `pip install {name}`.") from error
    tracker.init(project="malt", name=run.path.name, config=run.config, resume="allow")
    return tracker
