"""Grading programs by running them against the benchmark's tests.

The submitted code runs in a process of its own, locked in by every layer the system has
(`jail.limits`); the tests run in another and see only plain values (`jail`). Passing is shown by a
random token that the testing process prints at the end: exit statuses mean nothing, and the
submitted code's process never holds the token or the tests.

What this does not protect from: faults in the kernel, and layers that this system does not have
(the log names them). Python's own folders can be read, so the code sees which packages there are.
It is a fence, not a virtual machine; for code from an adversary use one.
"""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.tasks.base import Grade, Question
from malt_jax.tasks.graders.jail.limits import has_landlock

log = logging.getLogger(__name__)

PATIENCE = 4
JAIL = Path(__file__).with_name("jail")
# The folder is imported by its own name, so that nothing of this package is loaded, and appended
# to the path, so that it hides nothing.
_BOOT = """
import sys
sys.path.append({parent!r})
from jail import {role}
sys.path.pop()
{role}.main()
"""
LAYERS = {
    "namespaces": "submitted code can reach the network and signal your processes",
    "landlock": "submitted code can read your files",
    "readonly": "submitted code can change the modes and times of your files",
    "seccomp": "submitted code can open sockets and use shared memory beyond its limit",
}
_FENCE = re.compile(r"[^`~]*(`{3,}+|~{3,}+)[^`]*")
_DEFINED = re.compile(r"^(?:(?:async +)?def|class) +(\w+)", re.MULTILINE)
_IMPORTED = re.compile(r"^(?:from +\S+ +)?import +(.+)", re.MULTILINE)
_ANY_DEFINITION = re.compile(r"^[ \t]*(?:async +def|def|class)\s", re.MULTILINE)
_CODE = re.compile(  # in prose: an import at the start of a line, a definition anywhere
    r"^(?P<margin>[ \t]*)(?=from +\S+ +import\b|import +\w|@\w|[A-Z_]+ *=)"
    r"|(?:^(?P<indent>[ \t]*)|(?<=[\s`:]))(?=(?:async +)?def +\w+ *\(|class +\w+ *[(:])",
    re.MULTILINE,
)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
MAX_UNFENCED = 50  # definitions looked at in a text without fences
MAX_CODE = 20_000  # characters of one of them
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
        """The last fenced block that defines what the question asks for, with what it needs.

        Earlier blocks are joined when they define something that is asked for or that a later one
        uses: a helper stands in a block of its own. Where no block defines a name that is asked
        for, the last one with a definition counts. Without fences, what stands in the prose as
        Python is the block, and without any definition the whole text.
        """
        code = question.meta["code"] if question else {}
        blocks = _blocks(text) or _unfenced(text) or [text]
        taken = _needed(blocks, {*code.get("names", ()), *_words(code.get("fixture", ""))})
        defining = [block for block in blocks if _ANY_DEFINITION.search(block)]
        found = "\n".join(taken or (defining or blocks)[-1:]).rstrip()
        return found if found.strip() else None

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
        tests = question.meta["code"]
        token = secrets.token_hex(16)
        limits = {"seconds": self.seconds, "memory": self.memory}
        parts = [*_program(code, tests["setup"]), tests.get("fixture", "")]
        here, there = socket.socketpair()
        with tempfile.TemporaryDirectory() as folder, here, there:
            os.chmod(folder, 0o755)
            judge = _start("judge", here, folder)
            solution = _start("solution", there, folder)
            here.close()
            there.close()
            try:
                _give(solution, {"parts": parts, **limits})
                _give(judge, {**tests, "token": token, **limits})
                said = _read(judge, PATIENCE * self.seconds)
            finally:
                for process in (judge, solution):
                    _stop(process)
        layers, _, rest = said.partition("\n")
        _tell(layers)
        return rest.strip() == token


def _blocks(text: str) -> list[str]:
    """Markdown's fenced blocks, less the indentation of their fences; an open last one counts."""
    blocks: list[list[str]] = []
    mark, margin = "", 0
    for line in text.replace("\r\n", "\n").split("\n"):
        indent, words = len(line) - len(line.lstrip()), line.strip()
        bare = words.startswith(mark) and not words.strip(mark[:1])
        if not mark:
            if opening := _FENCE.fullmatch(line):
                mark, margin = opening[1], indent
                blocks.append([])
        elif bare and indent < margin + 4:  # further in it belongs to a docstring
            mark = ""
        elif not bare and words.endswith(mark) and words.count(mark) == 1:
            blocks[-1].append(line[min(indent, margin) :].rstrip().removesuffix(mark))
            mark = ""
        else:
            blocks[-1].append(line[min(indent, margin) :])
    return ["\n".join(lines) for lines in blocks]


def _unfenced(text: str) -> list[str]:
    """The Python in prose: from each import or definition on, as many lines as can be parsed.

    A text that is Python as a whole, or the body of a function, is left whole.
    """
    if _is_python(text) or _is_python(f"if True:\n{text}"):
        return [text]
    blocks: list[str] = []
    end = 0
    for opening in islice(_CODE.finditer(text), MAX_UNFENCED):
        start, margin = opening.end(), opening["margin"] or opening["indent"] or ""
        if start < end:
            continue
        first, *more = text[start : start + MAX_CODE].split("\n")
        lines = [first.partition("`")[0], *(line.removeprefix(margin).rstrip() for line in more)]
        if count := _parsed_lines(lines):
            blocks.append("\n".join(lines[:count]))
            end = start + sum(map(len, lines[:count]))
    return blocks


def _is_python(text: str) -> bool:
    """Whether a text is Python as a whole; "Done" and "Note: x" parse, but are prose."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(
        isinstance(node.value, ast.Call | ast.Constant)
        for node in tree.body
        if isinstance(node, ast.Expr | ast.AnnAssign)
    )


def _parsed_lines(lines: list[str]) -> int:
    """How many lines, to the end of a definition or import, are Python; 0 for none."""
    count = len(lines)
    for _ in range(MAX_UNFENCED):
        try:
            tree = ast.parse("\n".join(lines[:count]))
        except SyntaxError as error:
            count = min(count, error.lineno or 1) - 1  # the text goes on as prose from there
        except (ValueError, RecursionError, MemoryError):
            break
        else:
            ends = [node.end_lineno or 0 for node in tree.body if isinstance(node, _DEFINITIONS)]
            return max(ends, default=0)
        if count < 1:
            break
    return 0


def _needed(blocks: Sequence[str], asked: set[str]) -> list[str]:
    """The blocks that define what is asked for or what the ones taken use, in their order."""
    taken: list[str] = []
    wanted, known = set(asked), set[str]()
    for block in reversed(blocks):
        defined = set(_DEFINED.findall(block))
        imported = _words("\n".join(_IMPORTED.findall(block)))
        # An answer is no import: `from solution import f` shows how to use an earlier block.
        if (wanted - known) & (defined | imported if taken else defined):
            taken.insert(0, block)
            wanted |= _words(block)
            known |= defined | imported
    return taken


def _words(code: str) -> set[str]:
    return set(re.findall(r"\w+", code))


def _program(code: str, setup: str) -> list[str]:
    """The benchmark's own beginning and the solution.

    A body goes on where the beginning ends. A whole is a text of its own, in which an import
    `from __future__` may come first.
    """
    is_body = code.lstrip("\n")[:1].isspace()
    return [f"{setup.rstrip()}\n{code}"] if is_body else [setup, code]


def _start(role: str, channel: socket.socket, folder: str) -> subprocess.Popen:
    boot = _BOOT.format(parent=str(JAIL.parent), role=role)
    return subprocess.Popen(
        [sys.executable, "-I", "-c", boot, str(channel.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[channel.fileno()],
        start_new_session=True,
        cwd=folder,
        env=_ENVIRONMENT,
    )


def _stop(process: subprocess.Popen) -> None:
    """Ends the process with all that it started (see `jail.limits` for who listens to SIGTERM)."""
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


def _read(process: subprocess.Popen, seconds: float) -> str:
    """What the process prints until it ends or time is up, 4 kB at most."""
    assert process.stdout
    said, deadline = b"", time.monotonic() + seconds
    while len(said) < 4096 and (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        chunk = os.read(process.stdout.fileno(), 4096)
        if not chunk:
            break
        said += chunk
    return said.decode("utf-8", "replace")


@cache
def _tell(layers: str) -> None:
    """Says once what the system could not do."""
    for layer, consequence in LAYERS.items():
        if layers and layer not in layers.split():
            log.warning("code grading without %s: %s", layer, consequence)


def _public(path: str) -> bool:
    """Whether everybody can reach `path`."""
    real = Path(path).resolve()
    return all(p.stat().st_mode & 0o001 for p in real.parents) and bool(real.stat().st_mode & 0o004)
