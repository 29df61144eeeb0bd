"""A process of its own for comparisons of LaTeX, because some of them can only be killed."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path

from malt_jax.errors import UserError

# In seconds; the worker imports SymPy and latex2sympy before it is ready.
_START_SECONDS = 120


class Comparer:
    """One running `latex_worker`. `equal` may kill it: see `alive`."""

    def __init__(self) -> None:
        # -P: the worker's folder holds modules named like the standard library's.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("latex_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,  # a Ctrl-C in the terminal must not end it while it starts
        )
        if self._line(_START_SECONDS) != "ready":
            self.stop()
            raise UserError(
                "LaTeX answers can't be graded: latex2sympy does not start; "
                "pip install 'latex2sympy2_extended[antlr4_13_2]'"
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def equal(self, gold: str, answer: str, seconds: float) -> bool:
        """Whether two formulas are equal; False if that takes over `seconds` of processor time."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps([gold, answer, seconds]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        # A little longer than the worker's own wall-clock limit, so that the kernel ends it first.
        return self._line(10 * seconds + 5) == "true"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def _line(self, seconds: float) -> str:
        """One line of the worker, or "" when it is dead or late; a late one is killed."""
        assert self._process.stdout
        # The worker writes a line in one piece, so a read after `select` does not wait.
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline().strip() if ready else ""
        if not line:
            self._process.kill()
            self._process.wait()
        return line
