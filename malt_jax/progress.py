"""Progress of a command on standard error: a live panel on a terminal, else plain lines.

Results go to standard output. Texts may come from models and files, so control characters in them
are written out, and markup in them has no effect.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from malt_jax.escape import one_line
from malt_jax.storage.signals import signal_received

Source = Callable[[], Mapping[str, Any]]
"""Returns the current figures of something at work by name, for example of the sampler."""
EVERY = 5.0
"""The least seconds between two plain lines about one stage."""


def open_progress(quiet: bool = False, command: str = "run") -> Progress:
    """The progress that suits standard error: nothing, a live panel, or plain lines."""
    if not quiet and sys.stderr.isatty():
        return Dashboard(command)
    return Progress(quiet)


@dataclass
class StageProgress:
    """How far a stage is."""

    stage: str
    done: int
    total: int
    started: float
    """The time of its first update, when `first` items were done."""
    first: int
    numbers: dict[str, Any] = field(default_factory=dict)

    def seconds_left(self, now: float) -> float | None:
        """The remaining time at the pace so far; None before there is a pace."""
        # A continued stage starts at `first`, and only what this process did gives the pace.
        if self.done <= self.first or self.done >= self.total:
            return None
        return (now - self.started) * (self.total - self.done) / (self.done - self.first)


class Progress:
    """Progress as plain lines, or none with `quiet`. Use it as a context manager."""

    def __init__(self, quiet: bool = False, clock: Callable[[], float] = time.perf_counter):
        self.quiet = quiet
        self.clock = clock
        self.started = clock()
        self.task: StageProgress | None = None
        self._source: Source = dict
        # So long ago that the first update is shown at once.
        self._last_line = -EVERY

    def note(self, text: str) -> None:
        """Prints one line about something that happened."""
        if not self.quiet:
            elapsed = self.clock() - self.started
            print(f"[{elapsed:6.1f} s] {one_line(text)}", file=sys.stderr, flush=True)

    def update(self, stage: str, done: int, total: int, **numbers: Any) -> None:
        """Says how far a stage is, with numbers that describe it; it may be called at any rate.

        Texts among the numbers are shown as they are, floats with three digits.
        """
        now = self.clock()
        new = self.task is None or self.task.stage != stage
        if self.task is None or new:
            self.task = StageProgress(stage, done, total, now, done)
        self.task.done, self.task.total = done, total
        self.task.numbers.update(numbers)
        # The first and the last update of a stage are always shown, the others at intervals.
        self._show(self.task, now, always=new or done >= total)

    def watch(self, source: Source) -> None:
        """Shows the figures of a source beside every update from now on."""
        self._source = source

    def figures(self) -> dict[str, str]:
        """All figures of the current stage as texts by name."""
        now, task = self.clock(), self.task
        watched = dict(self._source())
        shown: dict[str, str] = {}
        if tokens := watched.get("tokens_generated"):
            seconds = watched["seconds"]
            shown["tokens/s"] = f"{tokens / seconds:,.0f}" if seconds else "-"
            shown["padding waste"] = f"{watched['padding_waste']:.1%}"
        if utilisation := watched.get("utilisation"):
            shown["MFU"] = f"{utilisation:.1%}"
        if task is not None:
            for name, value in task.numbers.items():
                shown[name.replace("_per_", "/").replace("_", " ")] = _number(value)
        # Figures of the sampler show that JAX is at work already.
        if memory := _memory(computing=bool(watched)):
            shown["memory"] = f"{memory / 1e9:.2f} GB"
        left = task.seconds_left(now) if task else None
        if left is not None:
            shown["left"] = duration(left)
        return shown

    def close(self) -> None:
        """Ends what is live; later notes are plain lines."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, task: StageProgress, now: float, always: bool) -> None:
        if self.quiet or not (always or now - self._last_line >= EVERY):
            return
        self._last_line = now
        shown = "".join(f", {name} {text}" for name, text in self.figures().items())
        self.note(f"{task.stage}: {task.done:,}/{task.total:,}{shown}")


class Dashboard(Progress):
    """Progress as a few live lines at the foot of the terminal; notes scroll by above them."""

    def __init__(self, command: str, clock: Callable[[], float] = time.perf_counter, console=None):
        from rich.console import Console
        from rich.live import Live

        super().__init__(clock=clock)
        self.command = command
        self.console = console or Console(stderr=True, highlight=False)
        self._live = Live(
            get_renderable=self.panel,
            console=self.console,
            refresh_per_second=4,
            # The panel is erased at the end, so that only the notes stay on the screen.
            transient=True,
            redirect_stdout=False,  # results keep going to standard output
        )
        self._live.start()

    def note(self, text: str) -> None:
        from rich.text import Text

        if self.task is not None and self.task.done >= self.task.total:
            self.task = None  # the next stage has not begun, and a full bar would look stuck
        elapsed = self.clock() - self.started
        self.console.print(Text(f"{duration(elapsed):>8}  ", style="dim") + Text(one_line(text)))

    def panel(self) -> Any:
        """The live lines: command and elapsed time, the bar of the stage, its figures."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        elapsed = duration(self.clock() - self.started)
        head = Text.assemble((f"malt {self.command}", "bold"), (f"  {elapsed}", "dim"))
        if signal_received():
            head.append("  stopping at the next safe point", "bold")
        if self.task is None:
            return head
        task = self.task
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(task.total, 1), completed=task.done, width=30)
        count = f"{task.done:,}/{task.total:,}"
        line.add_row(head, Text(one_line(task.stage)), bar, Text(count))
        figures = "  ·  ".join(f"{name} {text}" for name, text in self.figures().items())
        return Group(line, Text(one_line(figures), style="dim"))

    def close(self) -> None:
        self._live.stop()

    def _show(self, task: StageProgress, now: float, always: bool) -> None:
        """Does nothing, because the panel is drawn four times per second anyway."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A count with its noun: `1 step`, `2,000 steps`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A duration like a clock: `0:07`, `12:31`, `3:12:31`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _memory(computing: bool) -> int | None:
    """Bytes in use: of the first device if that is an accelerator, else of this process.

    `computing`: JAX is at work already, so that asking it does not start it.
    """
    if computing:
        import jax

        # A CPU reports no figures of its own, and the process's memory is read instead.
        if found := jax.local_devices()[0].memory_stats():
            return found.get("bytes_in_use")
    try:
        with open("/proc/self/statm") as file:
            # The second number of this file is the count of resident pages.
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
