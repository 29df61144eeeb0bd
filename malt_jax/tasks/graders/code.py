"""Grading programs by running them against the benchmark's tests.

The submitted code runs in a process of its own, confined by every layer that the system has
(`jail.limits`). The tests run in another process and see only plain values (`jail`). Passing is
shown by a random token that the testing process prints at the end: exit statuses mean nothing, and
the process of the submitted code never holds the token or the tests.

This does not protect from faults in the kernel, nor where the system lacks a layer (the log names
it). Python's own folders can be read, so the code sees which packages are installed. It is a fence
and not a virtual machine; for code from an adversary use one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.tasks.base import Grade, Question
from malt_jax.tasks.graders.jail.limits import has_landlock
from malt_jax.tasks.graders.snippets import program, words

log = logging.getLogger(__name__)

PATIENCE = 4  # seconds of waiting per second of processor time
STARTS = 3  # attempts to start the two processes; on a busy machine one may hang
JAIL = Path(__file__).with_name("jail")
# Imports the folder by its own name, so that nothing else of this package is loaded.
_BOOT = """
import importlib, sys
_, folder, role, channel = sys.argv
sys.path.append(folder + "/..")
main = importlib.import_module("jail." + role).main
sys.path.pop()
main(int(channel))
"""
LAYERS = {
    "namespaces": "submitted code can reach the network and signal your processes",
    "landlock": "submitted code can read your files",
    "readonly": "submitted code can change the modes and times of your files",
    "seccomp": "submitted code can open sockets and use shared memory beyond its limit",
}
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class CodeGrader:
    """Right when the tests in `question.meta["code"]` hold.

    That is an object `{"setup", "tests", "names"}`: code that both sides start from, the tests,
    and the names that the tests take from the solution. A further `"fixture"` is executed after the
    solution, in its process: it makes objects of the solution's own classes for the tests.

    allow_code: must be True; nobody runs a model's code by accident.
    seconds:    processor time of one program. It may wait for `PATIENCE` times as long, so that a
                busy machine grades as an idle one does.
    memory:     bytes of address space.
    workers:    programs that run at the same time.
    """

    allow_code: bool = False
    seconds: float = 10.0
    memory: int = 1 << 30
    workers: int = 2

    def __post_init__(self):
        if not self.allow_code:
            raise UserError(
                "task.allow_code is false, and grading this task runs code that the model wrote. "
                "It runs in a process without network, files or other processes where the system "
                "can do that, but not in a virtual machine: it is no protection from faults in the "
                "kernel. To accept that, set --task.allow-code true"
            )
        if os.geteuid() == 0 and not has_landlock() and not _public(os.__file__):
            raise UserError(
                "code can't be run: as root it runs as the user nobody, who can't read Python at "
                f"{os.path.dirname(os.__file__)}; use another user or another installation"
            )

    def extract(self, text: str, question: Question | None = None) -> str | None:
        """The program in the text, see `snippets`."""
        code = question.meta.get("code", {}) if question else {}
        return program(text, {*code.get("names", ()), *words(code.get("fixture", ""))})

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        codes = [self.extract(*pair) for pair in zip(texts, questions, strict=True)]
        pairs = list(zip(codes, questions, strict=True))
        with ThreadPoolExecutor(self.workers) as pool:
            held = pool.map(lambda pair: pair[0] is not None and self._passes(*pair), pairs)
            return [Grade(code, passed) for code, passed in zip(codes, held, strict=True)]

    def check(self, question: Question) -> str | None:
        """Why the question can't be graded; None when it can."""
        missing = {"setup", "tests", "names"} - set(question.meta.get("code", {}))
        return f"meta holds no code with {', '.join(sorted(missing))}" if missing else None

    def _passes(self, code: str, question: Question) -> bool:
        for _ in range(STARTS):
            token = secrets.token_hex(16)
            # The first line names the layers in force; all that follows must be the token. Without
            # that line nothing of the submitted code has run, so its wrong grade would be ours.
            layers, started, rest = self._judged(code, question, token).partition("\n")
            if started:
                _warn_of_missing(layers)
                return rest.strip() == token
        log.warning("question %s: the code could not be run; graded as wrong", question.id)
        return False

    def _judged(self, code: str, question: Question, token: str) -> str:
        """What the judge says about the code."""
        tests = question.meta["code"]
        limits = {"seconds": self.seconds, "memory": self.memory}
        parts = [*_program(code, tests["setup"]), tests.get("fixture", "")]
        # The two processes talk to each other, and the grader reads only what the judge prints.
        here, there = socket.socketpair()
        with tempfile.TemporaryDirectory() as folder, here, there:
            # The processes may run as the user nobody, who must be able to enter the folder.
            os.chmod(folder, 0o755)
            judge = _start("judge", here, folder)
            solution = _start("solution", there, folder)
            # Our ends are closed, so that each side sees the end of the channel when the other
            # dies.
            here.close()
            there.close()
            try:
                _give(solution, {"parts": parts, **limits})
                order = json.dumps({**tests, "token": token, **limits}).encode()
                said, _ = judge.communicate(order, timeout=PATIENCE * self.seconds)
            except subprocess.TimeoutExpired as late:
                said = late.output or b""
            finally:
                for process in (judge, solution):
                    _stop(process)
        return said.decode("utf-8", "replace")


def _program(code: str, setup: str) -> list[str]:
    """The texts to execute: the benchmark's own beginning and the solution.

    A function's body continues the beginning. A whole solution is a text of its own, in which an
    import `from __future__` may come first.
    """
    is_body = code.lstrip("\n")[:1].isspace()
    return [f"{setup.rstrip()}\n{code}"] if is_body else [setup, code]


def _start(role: str, channel: socket.socket, folder: str) -> subprocess.Popen:
    return subprocess.Popen(
        # -I keeps the user's packages, the PYTHON* variables and the current folder out.
        [sys.executable, "-I", "-c", _BOOT, str(JAIL), role, str(channel.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[channel.fileno()],
        # A group of its own, so that `_stop` reaches all that it started.
        start_new_session=True,
        cwd=folder,
        env=_ENVIRONMENT,
    )


def _stop(process: subprocess.Popen) -> None:
    """Ends the process with all that it started; see `jail.limits` for who handles SIGTERM."""
    # The outer process of a jail answers SIGTERM by killing the inner one.
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()


def _give(process: subprocess.Popen, order: dict) -> None:
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # it died; the missing token says so
        process.stdin.write(json.dumps(order).encode())
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


@cache
def _warn_of_missing(layers: str) -> None:
    """Warns once about layers that the system does not have."""
    for layer, consequence in LAYERS.items():
        if layers and layer not in layers.split():
            log.warning("code grading without %s: %s", layer, consequence)


def _public(path: str) -> bool:
    """Whether everybody can reach `path`."""
    real = Path(path).resolve()
    return all(p.stat().st_mode & 0o001 for p in real.parents) and bool(real.stat().st_mode & 0o004)
