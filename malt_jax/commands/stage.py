"""The commands that work on a run directory: the whole loop, and each of its stages."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from malt_jax.commands import evaluations, report
from malt_jax.commands.command import Command, Invocation, Option
from malt_jax.commands.launch import open_session, print_table, read_config
from malt_jax.errors import UserError
from malt_jax.escape import one_line
from malt_jax.storage.writers import is_writer

if TYPE_CHECKING:
    from malt_jax.evaluation.schema import Results
    from malt_jax.stages.session import Session

DRY_RUN = Option("--dry-run", "Say what would happen, with first prompts; write nothing.")
REDO = Option(
    "--redo",
    "Set aside what is damaged of a stage (such as search/000), and all after it; make it anew.",
    "STAGE",
)
PROFILE = Option(
    "--profile",
    "Write a JAX trace of a few steps of search and of each training into RUN/profile.",
)
JOIN = Option(
    "--join",
    "First take over the trees of these run directories or mirrors, the slices of one search.",
    "DIR ...",
    several=True,
)
WAIT = Option(
    "--wait",
    "With --join: wait so long for slices that are not finished, and say which.",
    "MINUTES",
    default=0.0,
    read=float,
)
IMPORT = Option(
    "--import",
    "First take trees that were sampled elsewhere (JSONL) in place of this run's search.",
    "FILE",
    several=True,
)
PREVIEW = Option(
    "--preview",
    "Print what every credit rule would select from the run's trees; write nothing.",
)
LONGEST_WAIT = 60 * 24 * 365
READ_INPUT = ("run", "search", "eval")
"""Commands that read questions and model, so that both are checked before anything is written."""


def run(invocation: Invocation) -> None:
    """Opens the run, performs the command's stages and prints the results they return."""
    if invocation.command.name == "eval" and evaluations.asks_for_evaluation(invocation):
        evaluations.run(invocation)
        return
    if invocation.command.name == "report" and report.asks_for_page(invocation):
        report.run(invocation)
        return
    _check_sources(invocation.options)
    if invocation.options.dry_run:
        from malt_jax.commands.dry_run import describe

        print(describe(invocation))
        return
    if getattr(invocation.options, "preview", False):
        _preview(invocation)
        return
    name = invocation.command.name
    with open_session(invocation, reads_input=name in READ_INPUT) as session:
        _take_trees(invocation, session)
        results = _perform(session, name)
    if results and is_writer():
        from malt_jax.evaluation.tables import to_terminal

        print_table(to_terminal(results))


def _check_sources(options: argparse.Namespace) -> None:
    """Refuses flags that contradict each other about where a run's trees come from."""
    slices, files = (getattr(options, name, None) for name in ("join", "import"))
    if slices and files:
        raise UserError("--import: the trees come from one place; leave --join out.")
    wait = getattr(options, "wait", 0.0)
    if wait and not slices:
        raise UserError("--wait: belongs to --join, whose slices it waits for.")
    if not 0 <= wait <= LONGEST_WAIT:
        raise UserError(f"--wait: found {wait:g}, allowed: 0 to {LONGEST_WAIT:,} minutes.")


def _take_trees(invocation: Invocation, session: Session) -> None:
    """Takes the trees that --join or --import names in place of this run's own search."""
    slices, files = (getattr(invocation.options, name, None) for name in ("join", "import"))
    if slices:
        from malt_jax.stages.join import join

        join(session, slices, invocation.options.wait)
    if files:
        from malt_jax.stages.outside import take_over

        take_over(session, files)


def _preview(invocation: Invocation) -> None:
    """Prints the preview of every round whose search is finished."""
    from malt_jax.progress import Progress
    from malt_jax.stages.names import search_stage
    from malt_jax.stages.preview import preview
    from malt_jax.stages.session import Session
    from malt_jax.storage.manifest import stage_done
    from malt_jax.storage.rundir import RunDir

    if invocation.options.join or getattr(invocation.options, "import"):
        raise UserError(
            "--preview: writes nothing, so it cannot join or import; do so with `malt label`."
        )
    config = read_config(invocation)
    session = Session(config, RunDir.existing(config.output_dir), Progress(quiet=True))
    _require(session, search_stage(0))
    for round in range(config.rounds):
        if stage_done(session.run, search_stage(round)):
            for line in preview(session, round):
                print(one_line(line))


def _perform(session: Session, name: str) -> Results | None:
    """Runs a stage once, or for every round; returns the results if there are any."""
    from malt_jax.stages import names

    # `eval` is a function of Python, so the stage's module has a longer name.
    module = {"eval": "evaluate"}.get(name, name)
    # Imported by name, so that a command loads only the stage that it runs.
    stage = getattr(import_module(f"malt_jax.stages.{module}"), module)
    if name == "search":
        _every_round(session, stage, names.search_stage, names.trained_stage, rounds_before=1)
    elif name == "label":
        _every_round(session, stage, names.label_stage, names.search_stage)
    elif name == "train":
        _every_round(session, stage, names.trained_stage, names.label_stage)
    else:
        if name == "export" or (name == "eval" and _measures_training(session)):
            _require(session, names.trained_stage(session.config.rounds - 1))
        results = stage(session)
        made = {"export": session.run.path / "export", "report": session.run.report}
        if name in made and is_writer():
            print(made[name])
        if name == "run":
            session.progress.note(f"report: {session.run.report}")
        if name == "report" and session.run.results.exists():
            results = json.loads(session.run.results.read_text())
        return cast("Results | None", results)
    return None


def _measures_training(session: Session) -> bool:
    """Whether the evaluation needs trained weights.

    Baselines of the base model alone can be measured before there are any, to choose prompts,
    temperatures and limits by.
    """
    from malt_jax.stages.variants import planned
    from malt_jax.tree.policies import BASE

    systems, variants = planned(session)
    policies = {turn.policy for system in systems for turn in system.turns}
    return bool(variants) or session.config.eval.trees > 0 or policies != {BASE}


def _every_round(
    session: Session,
    stage: Callable[[Session, int], Any],
    name: Callable[[int], str],
    needs: Callable[[int], str],
    rounds_before: int = 0,
) -> None:
    """Runs a stage for every round in order, as far as the stages that it needs are finished.

    A round needs the stage `needs` of the round that is `rounds_before` earlier. Raises UserError
    if there is nothing to do because such a stage is missing.
    """
    from malt_jax.storage.manifest import stage_done

    worked = False
    for round in range(session.config.rounds):
        # There is no round before the first one, so nothing needs to be finished for it.
        before = needs(round - rounds_before) if round >= rounds_before else None
        if before and not stage_done(session.run, before):
            # Earlier rounds had work to do, so a round that must wait is no error.
            if worked:
                session.progress.note(f"{name(round)}: waits for {before}")
                return
            _require(session, before)
        worked = worked or not stage_done(session.run, name(round))
        stage(session, round)


def _require(session: Session, stage: str) -> None:
    """Raises UserError unless an earlier stage is finished."""
    from malt_jax.storage.manifest import stage_done

    if not stage_done(session.run, stage):
        command = stage.partition("/")[0]
        raise UserError(
            f"{session.run.path}: {stage} is not finished, and this stage works on its result; "
            f"run `malt {command}` with the same config first, or `malt run` for everything."
        )


def _command(
    name: str,
    summary: str,
    about: str,
    fields: tuple[str, ...],
    *options: Option,
    examples: tuple[str, ...] = (),
) -> Command:
    return Command(
        name=name,
        summary=summary,
        about=about,
        run=run,
        options=(DRY_RUN, REDO, *options),
        fields=fields,
        examples=(f"malt {name} --config quickstart --output-dir runs/quickstart", *examples),
        computes=True,
    )


COMMANDS = (
    _command(
        "run",
        "the whole loop: search, label, train, evaluate, export, report",
        "Run again with the same config and --output-dir, it continues where it stopped. A config "
        "that would change results is refused, and the fields that differ are named. Prints the "
        "table of results.",
        (
            "model.path",
            "task.name",
            "task.train_path",
            "task.eval_path",
            "task.num_train",
            "task.num_eval",
            "rounds",
            "sharing",
        ),
        PROFILE,
    ),
    _command(
        "search",
        "a tree of answers, critiques and revisions for every question",
        "Samples n + n^2 + n^3 completions per question, grades the leaves and backs their rewards "
        "up to a value for every node. Writes RUN/rounds/000/trees.",
        (
            "task.name",
            "task.train_path",
            "task.num_train",
            "pipeline.roles.N.branch",
            "pipeline.roles.N.temperature",
            "search.backup",
            "search.threshold",
            "search.spare",
            "search.shard",
        ),
        PROFILE,
    ),
    _command(
        "label",
        "valued trees become each role's SFT examples and DPO pairs",
        "Writes RUN/rounds/000/data/ROLE/*.jsonl, which TRL and `datasets` read, and says what the "
        "trees can teach each role. With --join the trees come from slices that were searched "
        "apart, each by `malt search --search.shard i/k` into a run directory of its own; with "
        "--import they were sampled by something else.",
        (
            "search.threshold",
            "search.backup",
            "data.positives",
            "data.sft",
            "data.pairs",
        ),
        PREVIEW,
        JOIN,
        WAIT,
        IMPORT,
    ),
    _command(
        "train",
        "trains each role on its own data, by SFT and then DPO or as `train` of the role says",
        "Trains one adapter per role over one shared base. Writes RUN/checkpoints/000/ROLE.",
        (
            "train.lora.rank",
            "train.full",
            "train.sft.epochs",
            "train.sft.batch_size",
            "train.sft.optim.learning_rate",
            "train.dpo.epochs",
            "train.dpo.beta",
            "train.dpo.optim.learning_rate",
            "sharing",
        ),
        PROFILE,
    ),
    _command(
        "eval",
        "every system on the same held-out questions, compared in a table",
        "Evaluates the trained pipeline and every baseline with the same seeds. Writes RUN/eval, "
        "results.json and results.md, and prints the table. With --run, a finished run is measured "
        "on another task, split or temperature into RUN/evals/NAME; the run is not changed.",
        (
            "task.eval_path",
            "task.num_eval",
            "eval.systems",
            "eval.baseline",
            "eval.confidence",
            "eval.split",
            "eval.temperatures",
            "eval.models",
        ),
        *evaluations.OPTIONS,
        examples=("malt eval --run runs/quickstart --name t --eval.temperatures 0,0.7",),
    ),
    _command(
        "export",
        "a merged model and a PEFT adapter per role, in Hugging Face format",
        "Writes RUN/export/ROLE with tokenizer and model card, and prints the folder.",
        ("export.merged", "export.dataset", "export.push_to_hub"),
    ),
    _command(
        "report",
        "one self-contained page: results, cost, curves and every tree",
        "Writes RUN/report.html from what the run has so far, and prints its path and the results. "
        "With --compare, two runs on one page; with --watch, a live page of a run that goes on.",
        ("output_dir",),
        *report.OPTIONS,
        examples=(
            "malt report --compare runs/a runs/b",
            "malt report --watch --output-dir runs/quickstart",
        ),
    ),
)
