"""Gives `malt` wrong inputs of every kind and checks that each is refused as promised.

    python scripts/reliability_inputs.py [--only WORDS]

Every case must exit 2 with one sentence on standard error that contains the expected words (the
place and what was found), without a traceback, and change no file. Prints a table; exits 1 if any
case is answered differently. Takes a minute on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from wrong_inputs import CASES, Case, World

from malt_jax import cli

SECONDS = 120
"""A command that has not refused its input after this time hangs."""


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes, and None for everything else; without the lock, which is rewritten."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def faults(case: Case, folder: Path) -> tuple[list[str], str]:
    """What is wrong with the answer of `malt` to this case in an empty folder, and its message."""
    command = case.make(World(folder))
    before = contents(folder)
    status, out, message = _apart(case, command) if case.apart else here(command)
    wrong = [] if status == 2 else [f"exit {status}"]
    if message.count("\n") != 1 or not message.startswith("malt: "):
        wrong.append("not one sentence")
    if "Traceback" in message:
        wrong.append("a traceback")
    wrong += [f"does not say {word!r}" for word in case.words if word not in message]
    if contents(folder) != before:
        wrong.append("files were changed")
    if out:
        wrong.append("something on standard output")
    return wrong, message


def here(command: list[str]) -> tuple[int, str, str]:
    """Runs the words in this process; its exit status, standard output and standard error."""
    error, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(out):
        status = cli.main(command)
    return status, out.getvalue(), error.getvalue()


def _apart(case: Case, command: list[str]) -> tuple[int, str, str]:
    """Runs a command in a process of its own, with little memory and not for ever."""
    limit = "import resource as r; r.setrlimit(r.RLIMIT_DATA, (3 << 30, 3 << 30))"
    code = f"{limit}\nfrom malt_jax.cli import console; console()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            env={**os.environ, **case.env},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"malt: still working after {SECONDS} seconds\n"
    return done.returncode, done.stdout, done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="only cases whose name contains these words")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.only in case.name]
    failed = 0
    print("| wrong input | answer |\n| --- | --- |")
    for case in chosen:
        folder = Path(tempfile.mkdtemp(prefix="malt-input-"))
        wrong, message = faults(case, folder)
        shown = " ".join(message.replace(str(folder), "").split())
        print(
            f"| {case.name} | {('**' + '; '.join(wrong) + '** ') if wrong else ''}{shown[:300]} |"
        )
        sys.stdout.flush()
        failed += bool(wrong)
        shutil.rmtree(folder)
    print(f"\n{len(chosen) - failed} of {len(chosen)} kinds refused as promised")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
