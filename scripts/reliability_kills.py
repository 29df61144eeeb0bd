"""Interrupts a run many times, continues it, and compares its files with an undisturbed run's.

    python tests/tiny.py tiny
    PYTHONPATH=tests python scripts/reliability_kills.py --kills 100 -- \
        malt run --config tiny/config.yaml --quiet --output-dir {run}

`{run}` is replaced by a new folder. With `--bare` every interruption takes the run directory with
it, as a machine does that vanishes, and the command has to continue from its mirror, `{store}`:

    python scripts/reliability_kills.py --bare --anywhere -- \
        malt run --config tiny/config.yaml --quiet --output-dir {run} --mirror {store}

The command is first run undisturbed, and its stages are timed. Then every run is interrupted once
in each kind of stage, even if it is short: search, label, sft, dpo, saving (of a checkpoint), eval,
export, report. The signal is sent at a random moment within the measured length of the stage,
counted from its start. New runs follow until `--kills` signals were sent or `--minutes` have
passed. With `--anywhere`, the moments are random over the whole run.

TERM and INT are sent twice; the second must have no effect. Expected: every run ends with the same
trees, data, reference log-probabilities, draws, results and exports, byte for byte, and (for TERM
and INT) every interruption exits as documented. Prints one line per interruption and a table; exits
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
    "rounds/**/*",
    "checkpoints/**/references.npz",
    "eval/**/*",
    "export/**/*",
    "results.csv",
    "results.tex",  # the other tables contain times
)
DOCUMENTED = {"KILL": -9, "TERM": 143, "INT": 130}
POLL = 0.005

Moment = tuple[str, str]
"""A stage (`train/000/verifier/sft`) and what it is doing: its kind (`sft`), or `saving`."""


def contents(run: Path) -> dict[str, bytes]:
    files = {path for pattern in COMPARED for path in run.glob(pattern) if path.is_file()}
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)}


def stages(run: Path) -> dict[str, bool]:
    """Whether each stage is done, in the order in which the stages were begun."""
    try:
        listed = json.loads((run / "manifest.json").read_bytes())["stages"]
    except FileNotFoundError:
        return {}
    return {name: stage["done"] for name, stage in listed.items()}


def kind(stage: str) -> str:
    return stage.rpartition("/")[2] if stage.startswith("train/") else stage.partition("/")[0]


def saved_for(run: Path, since: float = 0.0) -> str | None:
    """The training stage that is writing a checkpoint now: one that has no seal yet.

    Checkpoints that an earlier process left unsealed are recognised by being older than `since`.
    """
    try:
        for folder in run.glob("checkpoints/*/*/*/[!.]*"):
            young = folder.is_dir() and folder.stat().st_mtime >= since
            if young and not (folder / "seal.json").exists():
                return "train/" + "/".join(folder.relative_to(run).parts[1:4])
    except FileNotFoundError:  # it was sealed and removed in the meantime
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
    store = str(run.with_name(f"{run.name}-store"))
    command = [part.replace("{run}", str(run)).replace("{store}", store) for part in command]
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
    """The seconds that the process spends in each stage, and on average in one of its savings.

    Returns when the process has ended; stages are in the order of the run.
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
    """One moment of each kind, in the order of the run; longer stages are chosen more often."""
    chosen = []
    for what in dict.fromkeys(what for _, what in lengths):
        alike = [moment for moment in lengths if moment[1] == what]
        chosen += generator.choices(alike, [lengths[moment] for moment in alike])
    return sorted(chosen, key=list(lengths).index)


def wait_until_at(
    aim: Moment, seconds: float, child: subprocess.Popen, run: Path, order: list[str], since: float
) -> bool:
    """Waits until the process has been at `aim` for `seconds`; False if that never happens.

    For `saving`, this is the first save of the training that takes so long.
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
    """Sends the signal; returns the seconds until the process ended, and its standard error."""
    number = getattr(signal, f"SIG{name}")
    child.send_signal(number)
    signalled = time.monotonic()
    if name != "KILL":
        wait_at_most(child, generator.uniform(0, 0.5))
        child.send_signal(number)
    errors = child.communicate()[1]
    return time.monotonic() - signalled, errors


def table(name: str, lengths: dict[Moment, float], answers: dict[str, list[float]]) -> list[str]:
    """One line per kind of stage: its longest length, the number of hits, the slowest answer."""
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
    parser.add_argument(
        "--longest", type=float, help="with --anywhere: at most so many seconds after opening"
    )
    parser.add_argument("--bare", action="store_true", help="remove the run directory as well")
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
    store, begins, ages = work / "disturbed-store", True, []
    while True:
        if begins:
            begins = False
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
                    at_most[aim] /= 2  # the stage was over sooner: the machine may be less busy now
                else:
                    child.wait()
        if enough or child.poll() is not None:
            errors = child.communicate()[1]
            if child.returncode != 0:
                wrong.append(f"attempt {attempt} did not continue: {errors[-300:]}")
            found, finished = contents(run), finished + 1
            differs = [n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)]
            wrong += [f"run {finished}: {name} differs" for name in sorted(differs)]
            print(f"run {finished} has ended, {len(differs)} files differ", flush=True)
            shutil.rmtree(run)
            shutil.rmtree(store, ignore_errors=True)
            begins = True
            if enough or child.returncode != 0:
                break
            continue

        hit = at_work_on(run, order, since)
        took, errors = interrupt(child, options.signal, generator)
        kills += 1
        answers[hit[1]].append(took)
        allowed = {DOCUMENTED[options.signal]}
        if (
            at_work_on(run, order, since)[0] == "closing"
        ):  # the signal came after everything was done
            allowed |= {0, -getattr(signal, f"SIG{options.signal}")}
        if child.returncode not in allowed:
            wrong.append(f"attempt {attempt}: exit {child.returncode}: {errors[-300:]}")
        print(f"{kills:4} {' '.join(hit)}: exit {child.returncode}, {took:.1f} s", flush=True)
        if options.bare:
            copies = [path.stat().st_mtime for path in store.rglob("*") if path.is_file()]
            ages += [time.time() - max(copies)] if copies else []
            shutil.rmtree(run)

    print("", *table(options.signal, lengths, answers), sep="\n")
    if ages:
        print(f"\nseconds since the last copy to the store: at most {max(ages):.1f}")
    print(f"\n{finished} runs finished")
    print("\n".join(wrong) or "every run ended with the same bytes as the undisturbed one")
    shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
