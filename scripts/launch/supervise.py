"""Restarts a run until it is done: for machines without a scheduler that would.

    python scripts/launch/supervise.py -- malt run --config C --output-dir RUN
    python scripts/launch/supervise.py --processes 4 -- malt run --config C --output-dir RUN

After `--` comes the command, which must name its `--output-dir`. With `--processes` it is started
as so many processes of one run on this machine. When one of them ends with an error, the others are
stopped, and after a pause all are started again; the same command continues where it stopped.

It ends with 0 when the run is done; with 2 when the command refuses its input, which another try
would not change; with 1 after `--stalled` attempts in a row that finished nothing new; and with 143
when it is itself asked to stop, after the processes have saved their state. Processes that do not
end within `--grace` seconds after another one did are killed; that must be more than the run's
`mesh.heartbeat`. A run whose files do not change for `--hang` seconds is killed and started again;
0: never.

Status 75 says that something outside does not answer, such as a store, and may do so later. Such
an attempt does not count towards `--stalled`; after `--away` seconds of them without anything new,
this ends with 75; 0: never.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a restart: twice as long after each one that finished nothing new."""
POLL = 0.2
NO_PROGRESS = ("metrics.jsonl", ".lock", "tensorboard", "config.yaml")
"""Files that change in every process, whether it comes further or not."""
WRONG_INPUT, TRY_LATER = 2, 75

stopping: list[int] = []
"""Signals that asked this script to stop."""


def start(command: list[str], processes: int) -> list[subprocess.Popen]:
    """Starts the command as one process, or as several that find each other."""
    if processes == 1:
        return [subprocess.Popen(command)]
    with socket.socket() as probe:  # a new port each time: the old one may still be taken
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = {"MALT_COORDINATOR": place, "MALT_PROCESSES": str(processes)}
    return [
        subprocess.Popen(command, env={**os.environ, **shared, "MALT_PROCESS": str(index)})
        for index in range(processes)
    ]


def done_so_far(run: Path) -> set[tuple[str, int]]:
    """Name and size of every file of the run that holds finished work."""
    found = set()
    for parent, folders, names in os.walk(run):
        # Hidden names are files that are being written.
        folders[:] = [name for name in folders if name not in NO_PROGRESS and name[0] != "."]
        for name in names:
            if name not in NO_PROGRESS and name[0] != ".":
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    found.add((os.path.join(parent, name), os.path.getsize(Path(parent, name))))
    return found


def last_change(run: Path) -> float:
    """When a file of the run was last written, by the clock of its disk; 0.0 if there is none."""
    newest = 0.0
    for parent, _, names in os.walk(run):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, os.path.getmtime(path))
    return newest


def stop(pod: list[subprocess.Popen], asked: bool, grace: float) -> None:
    """Waits until all processes have ended; after `grace` seconds they are killed.

    Processes that lost another one end by themselves, and say which; they are only `asked` to end
    if this script was.
    """
    if asked:
        signal_all(pod, signal.SIGTERM)
    until = time.monotonic() + grace
    while any(process.poll() is None for process in pod) and time.monotonic() < until:
        if stopping and not asked:
            return stop(pod, True, grace)
        time.sleep(POLL)
    signal_all(pod, signal.SIGKILL)
    for process in pod:
        process.wait()


def signal_all(pod: list[subprocess.Popen], number: int) -> None:
    for process in pod:
        if process.poll() is None:
            process.send_signal(number)


def attend(pod: list[subprocess.Popen], run: Path, hang: float, grace: float) -> str:
    """Waits until the run is done, or has to be started again; says which: `done` or why."""
    # Clocks of disks and machines differ and are set, so only a change of the time is looked at.
    written, changed = last_change(run), time.monotonic()
    looked = changed
    while True:
        statuses = [process.poll() for process in pod]
        if stopping:
            stop(pod, True, grace)
            return "asked to stop"
        if all(status == 0 for status in statuses):
            return "done"
        failed = {i: status for i, status in enumerate(statuses) if status not in (0, None)}
        if failed:
            stop(pod, False, grace)
            return f"process {min(failed)} ended with {failed[min(failed)]}"
        if hang and time.monotonic() - looked > min(hang / 4, 30):
            looked = time.monotonic()
            if (newest := last_change(run)) != written:
                written, changed = newest, looked
            if looked - changed > hang:
                signal_all(pod, signal.SIGKILL)
                stop(pod, False, grace)
                return f"nothing was written for {hang:g} s (--hang)"
        time.sleep(POLL)


def supervise(
    command: list[str],
    run: Path,
    processes: int = 1,
    stalled: int = 5,
    hang: float = 3600.0,
    away: float = 21600.0,
    grace: float = 150.0,
) -> int:
    """Runs the command until it is done; returns the exit status that says how it ended."""
    pause, idle, restarts = FIRST_PAUSE, 0, 0
    unanswered = None
    """When the first attempt since anything new was finished ended with `TRY_LATER`."""
    while True:
        before = done_so_far(run)
        pod = start(command, processes)
        reason = attend(pod, run, hang, grace)
        if reason == "done":
            say(f"done after {restarts} restarts")
            return 0
        if stopping:
            return 143
        if any(process.returncode == WRONG_INPUT for process in pod):
            say("the command refuses its input; correct that and start again")
            return WRONG_INPUT
        if done_so_far(run) - before:
            pause, idle, unanswered = FIRST_PAUSE, 0, None
        elif not any(process.returncode == TRY_LATER for process in pod):
            idle += 1
        elif unanswered is None:
            unanswered = time.monotonic()
        elif away and (waited := time.monotonic() - unanswered) >= away:
            say(f"{reason}; for {waited:.0f} s something outside has not answered, so this ends")
            return TRY_LATER
        if idle >= stalled:
            say(f"{reason}; {idle} attempts in a row have finished nothing new, so this ends")
            return 1
        restarts += 1
        say(f"{reason}; restart {restarts} in {pause:g} s")
        until = time.monotonic() + pause
        while time.monotonic() < until and not stopping:
            time.sleep(POLL)
        if stopping:
            return 143
        pause = min(2 * pause, LONGEST_PAUSE)


def say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)


def output_dir(command: list[str]) -> Path:
    """The run directory that a command names."""
    for flag in ("--output-dir", "--output_dir"):
        for index, word in enumerate(command):
            if word == flag and index + 1 < len(command):
                return Path(command[index + 1])
            if word.startswith(f"{flag}="):
                return Path(word.partition("=")[2])
    sys.exit("supervise: the command names no --output-dir, by which its progress is seen; add it")


def _count(text: str) -> int:
    """A whole number of 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    """A number of 0 or more, and no NaN."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: seconds, 0 (never) or more")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=_count, default=1, help="processes of the run [1]")
    parser.add_argument(
        "--stalled",
        type=_count,
        default=5,
        help="attempts without progress that end it, those with status 75 aside [5]",
    )
    parser.add_argument(
        "--hang",
        type=_seconds,
        default=3600.0,
        help="seconds without a written file, after which it is started again; 0: never [3600]",
    )
    parser.add_argument(
        "--away",
        type=_seconds,
        default=21600.0,
        help="seconds in which attempts end with status 75 (a store or hub does not answer) and "
        "nothing new is finished, after which it ends; 0: never [21600]",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=150.0,
        help="seconds that processes have to end, after one did or this was asked to stop, before "
        "they are killed [150]",
    )
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    run = output_dir(options.command)
    return supervise(
        options.command,
        run,
        options.processes,
        options.stalled,
        options.hang,
        options.away,
        options.grace,
    )


if __name__ == "__main__":
    sys.exit(main())
