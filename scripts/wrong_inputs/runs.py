"""Run directories that are not ours, and the arguments of commands."""

from __future__ import annotations

import os
from typing import Any

from malt_jax import config
from malt_jax.config import reading
from wrong_inputs.world import LONG, Make, World, case, flag, made, words


def _of_another_run(world: World) -> list[str]:
    """A run directory whose config differs in one field."""
    from malt_jax.storage.rundir import RunDir

    made = config.load(world.command("--seed", "1")[2], ["--seed", "1"])
    RunDir.open(world.out, reading.to_dict(made), "malt run").close()
    return world.command()


def _redo_dry(world: World) -> list[str]:
    return [*_of_another_run(world), "--seed", "1", "--redo", "nope", "--dry-run"]


def _stranger(world: World, variant: bool = False, name: str = "evil:T", **task: Any) -> str:
    """A run directory whose config names Python code; importing that would write a file."""
    from malt_jax.storage.rundir import RunDir

    data = {"task": {"name": "arithmetic" if variant else name, **task}}
    if variant:
        data["ablations"] = [{"name": "a", "set": {"task": {"name": name}}}]
    folder = world.folder / "stranger"
    if not folder.exists():
        (world.folder / "evil.py").write_text("raise SystemExit('imported')")
        made = config.from_dict(data, ["--output-dir", str(folder)])
        RunDir.open(folder, reading.to_dict(made), "malt run").close()
    return str(folder)


def _slice(trees: str | None) -> Make:
    """Labels with a slice whose search is sealed around these trees; None: right ones, no cost."""

    def build(world: World) -> list[str]:
        from malt_jax.storage import manifest
        from malt_jax.storage.rundir import RunDir

        made = config.load(world.command()[2])
        folder = world.folder / "slice"
        with RunDir.open(folder, reading.to_dict(made), "malt search") as run:
            path = run.trees(0) / "00000.jsonl"
            path.parent.mkdir(parents=True)
            path.write_text("" if trees is None else trees)
            manifest.amend(run, model={"fingerprint": "x", "path": "x", "revision": None})
            manifest.seal(run, "search/000", [path])
        return ["label", *world.command()[1:], "--join", str(folder)]

    return build


def _mirror_of_a_run(world: World) -> list[str]:
    from malt_jax.storage.rundir import RunDir

    made = config.load(world.command()[2])
    RunDir.open(world.folder / "other", reading.to_dict(made), "malt run").close()
    return world.command("--mirror", str(world.folder / "other/backup"))


def _run_in_a_mirror(world: World) -> list[str]:
    from malt_jax.storage import mirror
    from malt_jax.storage.rundir import RunDir

    made, store = config.load(world.command()[2]), world.folder / "mirror"
    with RunDir.open(world.folder / "other", reading.to_dict(made), "malt run") as run:
        mirror.push(run, str(store))
    return world.command("--output-dir", str(store / "run"))


def _mirror_fifo(world: World) -> list[str]:
    mirror = world.folder / "mirror"
    mirror.mkdir()
    os.mkfifo(mirror / "manifest.json")
    return world.command("--mirror", str(mirror))


RUNS = (
    case("run directory: is a file", made(lambda f: (f / "run").write_text("mine")), "is a file"),
    case(
        "run directory: holds something else",
        made(lambda f: ((f / "run").mkdir(), (f / "run/thesis.tex").write_text("mine"))),
        "thesis.tex",
    ),
    case(
        "run directory: beneath a file",
        made(lambda f: (f / "file").write_text("mine"), "--output-dir", "{here}/file/run"),
        "file",
    ),
    case(
        "run directory: a name of 300 characters",
        flag("--output-dir", "/tmp/" + "x" * 300),
        "shorter",
    ),
    case("run directory: of another config", _of_another_run, "seed was 1 and is now 0"),
    case(
        "run directory: a manifest of nonsense",
        made(lambda f: ((f / "run").mkdir(), (f / "run/manifest.json").write_text("{}"))),
        "manifest",
    ),
    case(
        "redo of no stage",
        lambda w: [*_of_another_run(w), "--seed", "1", "--redo", "searh"],
        "searh",
    ),
    case(
        "redo of an unset variable", flag("--redo", ""), "--redo", "unset variable", "leave it out"
    ),
    case(
        "join of an unset variable",
        lambda w: ["label", *w.command()[1:], "--join", ""],
        "--join",
        "unset variable",
    ),
    case("mirror: the run directory of another run", _mirror_of_a_run, "mirror", "run directory"),
    case(
        "run directory: in the mirror of another run",
        _run_in_a_mirror,
        "mirror of a run",
    ),
    case("label before search", lambda w: ["label", *w.command()[1:]], "search/000"),
    case("ask of what is no run", lambda w: ["ask", "1+1?", "--run", str(w.folder)], "not a run"),
    case(
        "ask with no votes",
        lambda w: ["ask", "1+1?", "--run", str(w.folder), "--votes", "x"],
        "votes",
    ),
    case(
        "report of what is no run", lambda w: ["report", "--output-dir", str(w.folder)], "not a run"
    ),
    case(
        "report that compares one run",
        lambda w: ["report", "--compare", str(w.folder)],
        "give two",
    ),
    case(
        "report that compares what is no run",
        lambda w: ["report", "--compare", str(w.folder), str(w.folder)],
        "not a run",
    ),
    case(
        "report over a file of somebody else",
        lambda w: [
            *("report", "--compare", _stranger(w), _stranger(w), "--trust-task-code"),
            *("--output", str(w.folder / "train.jsonl")),
        ],
        "--output",
    ),
    case(
        "report that watches and compares",
        lambda w: ["report", "--watch", "--compare", str(w.folder), str(w.folder)],
        "--watch",
    ),
    case(
        "report on no port",
        lambda w: ["report", "--watch", "--port", "70000", "--output-dir", str(w.folder)],
        "--port",
    ),
    case(
        "init over a file",
        lambda w: ["init", "gsm8k", "org/model", "--output", str(w.folder / "train.jsonl")],
        "exists",
    ),
    case("init of an unknown task", lambda w: ["init", "gsm9k", "org/model"], "gsm8k"),
    case(
        "plan for an unknown slice",
        lambda w: ["plan", *w.command()[1:], "--topology", "v9x:1x1"],
        "v9x",
    ),
    case("later: an output of 300 letters", words("init", "gsm8k", "m", "--output", LONG), "xxx"),
    case("later: init of no model", words("init", "gsm8k", ""), "model.path"),
    case(
        "later: too many chips",
        words("plan", "--config", "quickstart", "--topology", f"h100:{9**30}"),
        "chips",
    ),
    case("later: branches below none", words("bench", "sampler", "--branch", "-1"), "--branch"),
    case("later: a stage of no bench", words("bench", "train", "--stage", "nope"), "sft, dpo"),
    case("later: a roofline of nothing", words("bench", "roofline"), "--topology", "v5p:2x2x1"),
    case(
        "later: a roofline without a compiler",
        words("bench", "roofline", "--topology", "h100:1", "--model.path", "quickstart"),
        "h100:1",
        "TPU slice",
    ),
    case("later: one step to time", words("bench", "train", "--steps", "1"), "--steps"),
    case(
        "later: more new tokens than the bench's model reads",
        words("bench", "sampler", "--model.path", "quickstart", "--max-new-tokens", "100000"),
        "context of 256",
    ),
    case("redo of no stage in a dry run", _redo_dry, "nope"),
    case(
        "join of no run",
        lambda w: ["label", *w.command()[1:], "--join", str(w.folder)],
        "not a run",
    ),
    case("join of a slice whose trees are nothing", _slice('{"x": 1}\n'), "--join"),
    case("join of a slice whose trees are torn", _slice('{"question_id": '), "--join"),
    case("join of a slice whose trees are lists", _slice("[1]\n"), "--join"),
    case("join of a slice without its cost", _slice(None), "--join"),
    case("mirror: a FIFO for its manifest", _mirror_fifo, "mirror", apart=True),
    case(
        "ask of a stranger's code",
        lambda w: ["ask", "1", "--run", _stranger(w)],
        "--trust-task-code",
    ),
    case(
        "report of a stranger's code",
        lambda w: ["report", "--output-dir", _stranger(w)],
        "--trust-task-code",
    ),
    case(
        "plan of a stranger's code",
        lambda w: ["plan", "--output-dir", _stranger(w)],
        "--trust-task-code",
    ),
    case(
        "pool of a stranger's code",
        lambda w: ["pool", _stranger(w), _stranger(w)],
        "--trust-task-code",
    ),
    case(
        "report where a stranger's variant names code",
        lambda w: ["report", "--output-dir", _stranger(w, variant=True)],
        "--trust-task-code",
    ),
    case(
        "report where a stranger lets programs run",
        lambda w: ["report", "--output-dir", _stranger(w, name="mbpp", allow_code=True)],
        "allow_code",
    ),
)
