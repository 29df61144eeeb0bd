"""`malt eval --run DIR`: a finished run measured on other tasks, splits and temperatures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from malt_jax.checks import check_unique
from malt_jax.commands.command import Invocation, Option
from malt_jax.commands.launch import check_prompts, print_table, redo
from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.errors import UserError
from malt_jax.stages.trust import check_trust

if TYPE_CHECKING:
    from malt_jax.config.run import Config
    from malt_jax.progress import Progress
    from malt_jax.stages.evaluations import Evaluation
    from malt_jax.stages.session import Session
    from malt_jax.storage.rundir import RunDir

OPTIONS = (
    Option("--run", "A finished run to measure apart, into DIR/evals; alone: their table.", "DIR"),
    Option("--name", "The evaluation's folder in DIR/evals.", "NAME"),
    Option("--tasks", "One evaluation of each: TASK, or TASK=FILE.", "TASK", several=True),
    Option("--allow-overlap", "Measure training questions as well, and say so."),
)
CAPTION = (
    "Accuracy in %, its interval, points above the single agent at equal calls; *: p < 0.05 after "
    "Holm's correction."
)


def asks_for_evaluation(invocation: Invocation) -> bool:
    """Whether the words mean an evaluation of a finished run and not a run's own stage."""
    options = invocation.options
    if options.run:
        return True
    for name in ("name", "tasks", "allow_overlap"):
        if getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: belongs to --run DIR, the finished run that is measured.")
    return False


def run(invocation: Invocation) -> None:
    """Makes the evaluations, prints the table of each, then the table over all of them."""
    from malt_jax import progress
    from malt_jax.distributed import initialize
    from malt_jax.environment import devices
    from malt_jax.stages.evaluations import trained_run, write_table
    from malt_jax.stages.session import Session
    from malt_jax.storage.signals import graceful_stop
    from malt_jax.storage.writers import is_writer

    options = invocation.options
    if options.config:
        raise UserError("--config: the run has its config; with --run give fields as flags.")
    config, directory = trained_run(options.run, options.trust_task_code)
    plans = list(_plans(invocation, config, directory.path))
    if plans:
        initialize(plans[0][1].mesh)
        devices()
    quiet = options.dry_run or any(plan.quiet for _, plan in plans) or not is_writer()
    with graceful_stop(), progress.open_progress(quiet, "eval") as shown:
        trained = Session(config, directory, shown)
        # All are checked before the first is measured.
        for session in [_checked(invocation, trained, plan) for _, plan in plans]:
            _evaluate(invocation, session, shown)
        if options.dry_run and not plans:
            print("\n".join(_described_table(directory)))
        if is_writer() and not options.dry_run:
            table = write_table(directory)
            # One evaluation has printed its own table.
            if len(plans) != 1:
                print_table(table.terminal(CAPTION))


def _plans(invocation: Invocation, config: Config, run: Path) -> Iterator[tuple[str, Config]]:
    """The name and the config of each evaluation that the words ask for."""
    from malt_jax.config.reading import apply_flags
    from malt_jax.stages.evaluations import evaluation_config

    options, fields = invocation.options, invocation.fields
    if options.tasks:
        begin = f"{options.name}-" if options.name else ""
        words = [word.partition("=") for word in options.tasks]
        check_unique("--tasks", [task for task, _, _ in words])
        for task, _, file in words:
            name = begin + task.replace(":", "-")
            flags = ["--task.name", task, *(["--task.eval-path", file] if file else [])]
            yield name, evaluation_config(config, run, name, [*fields, *flags])
    elif options.name:
        yield options.name, evaluation_config(config, run, options.name, list(fields))
    elif options.redo or apply_flags({}, fields).keys() - CANNOT_CHANGE_RESULTS:
        raise UserError("--name: missing; it names the evaluation's folder in the run.")


def _checked(invocation: Invocation, trained: Session, config: Config) -> Evaluation:
    """One evaluation, once nothing is found that it could not be made of."""
    from malt_jax.commands.bases import check_models
    from malt_jax.config.reading import apply_flags
    from malt_jax.stages.evaluations import Evaluation, check_evaluation
    from malt_jax.stages.variants import planned

    options = invocation.options
    said = apply_flags({}, invocation.fields)
    if options.tasks:  # the user's own words as well
        said.setdefault("task", {})["name"] = config.task.name
    check_trust(config, config.output_dir, options.trust_task_code, said)
    config = _with_baseline(config, trained, named="baseline" in said.get("eval", {}))
    session = Evaluation(config, trained, allow_overlap=options.allow_overlap)
    check_evaluation(session)
    systems, _ = planned(session)
    check_prompts(session, systems, check_models(config), questions=session.eval_questions)
    return session


def _with_baseline(config: Config, trained: Session, named: bool) -> Config:
    """The config with the default baseline where the run's own is no row of this evaluation.

    A run may be tested against a system or an ablation that is not measured here. One that the user
    has `named` is refused instead (`planned`).
    """
    from malt_jax.config.evaluation import EvalConfig
    from malt_jax.evaluation.systems import make_systems
    from malt_jax.stages.evaluations import Evaluation
    from malt_jax.stages.variants import is_row

    # The default always is: the single agent is in every table.
    default, session = EvalConfig().baseline, Evaluation(config, trained)
    systems = make_systems(config.eval, session.pipeline, session.task.templates)
    if named or is_row(config.eval.baseline, systems):
        return config
    trained.progress.note(
        f"eval: rows are tested against {default}, because the run's own baseline, "
        f"{config.eval.baseline}, is not measured here; --eval.baseline names another"
    )
    return replace(config, eval=replace(config.eval, baseline=default))


def _evaluate(invocation: Invocation, session: Evaluation, shown: Progress) -> None:
    """Makes or continues one evaluation and prints its table; with --dry-run only says what."""
    from malt_jax.evaluation.tables import to_terminal
    from malt_jax.stages.evaluate import evaluate
    from malt_jax.stages.evaluations import opened
    from malt_jax.storage.writers import is_writer

    options = invocation.options
    if options.dry_run:
        print("\n".join(_described(session)))
        return
    if seen := session.trained_on_evaluated:
        shown.note(f"WARNING: {seen} of {len(session.eval_questions)} questions were trained on")
    with opened(session):
        redo(invocation, session.run, shown)
        results = evaluate(session)
    if is_writer():
        print_table(to_terminal(results))
        print(session.run.results)


def _described(session: Evaluation) -> Iterator[str]:
    """What an evaluation would do, and the first question's prompt for each role."""
    from malt_jax.commands.bases import check_models
    from malt_jax.commands.dry_run import prompts
    from malt_jax.escape import one_line
    from malt_jax.progress import counted
    from malt_jax.stages.names import EVAL
    from malt_jax.stages.variants import planned
    from malt_jax.storage import manifest

    systems, _ = planned(session)
    questions, task, config = session.eval_questions, session.task, session.config
    yield "malt eval would do this. Nothing was written."
    yield f"evaluation: {config.output_dir}"
    if not Path(config.output_dir, manifest.NAME).exists():
        yield "  it would be made"
    elif manifest.stage_done(config.output_dir, EVAL):
        yield "  it is finished: nothing is left to do but to print its table"
    else:
        yield "  it has begun, and would be continued"
    yield f"task: {task.name}, {one_line(task.description)}"
    yield f"  {len(questions):,} questions, {session.trained_on_evaluated} of them trained on"
    for system in systems:
        turns = " ".join(f"{turn.role.name}:{turn.policy}" for turn in system.turns)
        yield f"  {one_line(system.name)}: {turns}, {system.draws} draws"
    yield f"  each row is tested against {config.eval.baseline}"
    if trees := min(config.eval.trees, len(questions)):
        yield f"  the whole trees of {counted(trees, 'question')}, before and after training"
    yield from prompts(session, check_models(session.config), questions[0])


def _described_table(run: RunDir) -> Iterator[str]:
    """What the command does where no evaluation is named."""
    from malt_jax.stages.evaluations import FOLDER, TABLE, finished

    columns = finished(run)
    if not columns:
        raise UserError(f"{run.path}: nothing is evaluated yet; give an evaluation a --name.")
    yield "malt eval would do this. Nothing was written."
    yield f"table over {', '.join(column.name for column in columns)}"
    yield f"  printed, and written to {run.path / FOLDER / TABLE}.json, .md and .csv"
    yield "  nothing would be measured; --name makes another evaluation"
