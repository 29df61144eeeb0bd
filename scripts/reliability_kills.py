"""Interrupts a run again and again, lets it go on, and compares its end with an undisturbed one.

    python tests/tiny.py tiny
    PYTHONPATH=tests python scripts/reliability_kills.py --kills 100 -- \
        malt run --config tiny/config.yaml --quiet --output-dir {run}

`{run}` is replaced by a fresh folder. The command is first run undisturbed and its stages timed.
Then every run is interrupted once in each kind of stage, however short: search, label, sft, dpo,
saving (of a checkpoint), eval, export, report. The signal comes at a random moment of the stage's
measured length, counted from the moment the process begins it. Runs follow each other until
`--kills` signals were sent or `--minutes` have passed. With `--anywhere` the moments are random
ones of the whole run.

TERM and INT are sent twice: the second must change nothing. Expected: every run ends with the same
trees, data, reference log-probabilities, draws, results and exports, byte for byte, and (for TERM
and INT) every interruption exits as documented. Prints one line an interruption and a table; exits
1 if anything differs.
"""

import argparse
import collections
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPARED = (
    *("rounds/**/*", "checkpoints/**/references.npz", "eval/**/*", "export/**/*"),
    *("results.csv", "results.tex"),  # the other tables tell seconds
)
DOCUMENTED = {"KILL": -9, "TERM": 143, "INT": 130}
POLL = 0.005

Moment = tuple[str, str]
"""A stage (`train/000/verifier/sft`), and what it is at: its kind (`sft`), or `saving`."""


def contents(run: Path) -> dict[str, bytes]:
    files = {path for pattern in COMPARED for path in run.glob(pattern) if path.is_file()}
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)}


def stages(run: Path) -> dict[str, bool]:
    """{stage: whether it is done} in the order they were begun."""
    try:
        listed = json.loads((run / "manifest.json").read_bytes())["stages"]
    except FileNotFoundError:
        return {}
    return {name: stage["done"] for name, stage in listed.items()}


def kind(stage: str) -> str:
    return stage.rpartition("/")[2] if stage.startswith("train/") else stage.partition("/")[0]


def saved_for(run: Path, since: float = 0.0) -> str | None:
    """The training a checkpoint is being written for: one that has no seal yet.

    What an earlier process left unsealed is told apart by being older than `since`.
    """
    try:
        for folder in run.glob("checkpoints/*/*/*/[!.]*"):
            young = folder.is_dir() and folder.stat().st_mtime >= since
            if young and not (folder / "seal.json").exists():
                return "train/" + "/".join(folder.relative_to(run).parts[1:4])
    except FileNotFoundError:  # it was sealed and removed while we looked
        pass
    return None


def at_work_on(run: Path, order: list[str], since: float) -> Moment:
    """The first stage that is not done."""
    if not (run / "manifest.json").exists():
        return "opening", "opening"
    done = stages(run)
    stage = next((name for name in order if not done.get(name)), "closing")
    return stage, "saving" if saved_for(run, since) == stage else kind(stage)


def start(command: list[str], run: Path) -> subprocess.Popen:
    command = [part.replace("{run}", str(run)) for part in command]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until_open(child: subprocess.Popen, run: Path) -> None:
    """Returns when the process holds the run's lock, or has ended."""
    while child.poll() is None:
        try:
            if json.loads((run / ".lock").read_bytes())["pid"] == child.pid:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.01)


def wait_at_most(child: subprocess.Popen, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


def time_stages(child: subprocess.Popen, run: Path) -> dict[Moment, float]:
    """Seconds from here that the process is at each stage, and at one of its savings, on average.

    Returns, in the order of the run, when the process has ended.
    """
    began = saving_began = time.monotonic()
    ends, saving, saves = {}, None, collections.defaultdict(list)
    running = True
    while running:
        running = child.poll() is None
        now = time.monotonic()
        for stage, done in stages(run).items():
            if done:
                ends.setdefault(stage, now)
        if (stage := saved_for(run)) != saving:
            if saving:
                saves[saving].append(now - saving_began)
            saving, saving_began = stage, now
        time.sleep(POLL)
    lengths = {}
    for stage, end in ends.items():
        lengths[stage, kind(stage)], began = end - began, end
        if stage in saves:
            lengths[stage, "saving"] = sum(saves[stage]) / len(saves[stage])
    return lengths


def one_of_each_kind(lengths: dict[Moment, float], generator: random.Random) -> list[Moment]:
    """What to interrupt in one run, in its order; the longer of a kind the more often."""
    chosen = []
    for what in dict.fromkeys(what for _, what in lengths):
        alike = [moment for moment in lengths if moment[1] == what]
        chosen += generator.choices(alike, [lengths[moment] for moment in alike])
    return sorted(chosen, key=list(lengths).index)


def wait_until_at(
    aim: Moment, seconds: float, child: subprocess.Popen, run: Path, order: list[str], since: float
) -> bool:
    """Waits until the process has been at `aim` for so long; False when it is past it or ended.

    Of a training's savings, the first that takes so long is meant.
    """
    places, entered = ["opening", *order, "closing"], None
    while child.poll() is None:
        stage, what = at_work_on(run, order, since)
        now = time.monotonic()
        if stage == aim[0] and aim[1] in (what, kind(stage)):
            entered = entered or now
            if now - entered >= seconds:
                return True
        else:
            entered = None
        if places.index(stage) > places.index(aim[0]):
            return False
        time.sleep(POLL)
    return False


def interrupt(child: subprocess.Popen, name: str, generator: random.Random) -> tuple[float, str]:
    """(seconds until the process had ended, what it said)"""
    number = getattr(signal, f"SIG{name}")
    child.send_signal(number)
    told = time.monotonic()
    if name != "KILL":
        wait_at_most(child, generator.uniform(0, 0.5))
        child.send_signal(number)
    errors = child.communicate()[1]
    return time.monotonic() - told, errors


def table(name: str, lengths: dict[Moment, float], answers: dict[str, list[float]]) -> list[str]:
    """A line a kind of stage: the longest of it, how often it was hit, the slowest end."""
    lines = [f"| interrupted in | its length, s | SIG{name} | slowest answer, s |"]
    lines.append("| --- | --- | --- | --- |")
    for what in dict.fromkeys(["opening", *(what for _, what in lengths), "closing"]):
        if what in answers:
            seconds = max((lengths[moment] for moment in lengths if moment[1] == what), default=0)
            took = answers[what]
            lines.append(f"| {what} | {seconds:.2f} | {len(took)} | {max(took):.2f} |")
    took = [seconds for every in answers.values() for seconds in every]
    return [*lines, f"| all | | {len(took)} | {max(took):.2f} |"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--signal", choices=list(DOCUMENTED), default="KILL")
    parser.add_argument("--anywhere", action="store_true", help="at any moment of the run")
    parser.add_argument("--longest", type=float, help="with it: seconds from opening, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="malt-kills-"))

    reference = start(options.command, work / "undisturbed")
    began = time.monotonic()
    wait_until_open(reference, work / "undisturbed")
    opened = time.monotonic()
    lengths = time_stages(reference, work / "undisturbed")
    whole = time.monotonic() - opened
    errors = reference.communicate()[1]
    if reference.returncode != 0:
        print(f"the undisturbed run failed with {reference.returncode}:\n{errors}")
        return 1
    expected, order = contents(work / "undisturbed"), list(stages(work / "undisturbed"))
    print(
        f"undisturbed: {opened - began:.1f} s to open, {whole:.1f} s of work, "
        f"{len(expected)} files compared",
        flush=True,
    )

    answers, wrong = collections.defaultdict(list), []
    kills = attempt = finished = 0
    run, aims, at_most = work / "disturbed", [], dict(lengths)
    while True:
        if not run.exists():
            aims = one_of_each_kind(lengths, generator)
        attempt += 1
        child, since = start(options.command, run), time.time()
        enough = kills >= options.kills or time.monotonic() - began > 60 * options.minutes
        if not enough:
            wait_until_open(child, run)
            if options.anywhere:
                wait_at_most(child, generator.uniform(0, options.longest or whole))
            else:
                while aims:
                    aim = aims.pop(0)
                    seconds = generator.uniform(0, at_most[aim])
                    if wait_until_at(aim, seconds, child, run, order, since):
                        break
                    at_most[aim] /= 2  # it was over before: the machine may be faster by now
                else:
                    child.wait()
        if enough or child.poll() is not None:
            errors = child.communicate()[1]
            if child.returncode != 0:
                wrong.append(f"attempt {attempt} would not go on: {errors[-300:]}")
            found, finished = contents(run), finished + 1
            differs = [n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)]
            wrong += [f"run {finished}: {name} differs" for name in sorted(differs)]
            print(f"run {finished} has ended, {len(differs)} files differ", flush=True)
            shutil.rmtree(run)
            if enough or child.returncode != 0:
                break
            continue

        hit = at_work_on(run, order, since)
        took, errors = interrupt(child, options.signal, generator)
        kills += 1
        answers[hit[1]].append(took)
        allowed = {DOCUMENTED[options.signal]}
        if at_work_on(run, order, since)[0] == "closing":  # it came when all was done
            allowed |= {0, -getattr(signal, f"SIG{options.signal}")}
        if child.returncode not in allowed:
            wrong.append(f"attempt {attempt}: exit {child.returncode}: {errors[-300:]}")
        print(f"{kills:4} {' '.join(hit)}: exit {child.returncode}, {took:.1f} s", flush=True)

    print("", *table(options.signal, lengths, answers), sep="\n")
    print(f"\n{finished} runs finished")
    print("\n".join(wrong) or "every run ended with the bytes of the undisturbed one")
    shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
