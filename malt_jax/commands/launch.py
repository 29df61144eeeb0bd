"""From a command line to a session on a run directory, checked before anything is written."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.checks import check_place
from malt_jax.commands.bases import Found, Models, check_models, specs_of
from malt_jax.commands.command import Invocation
from malt_jax.commands.room import check_room
from malt_jax.config.export import check_repository
from malt_jax.errors import UserError
from malt_jax.stages.trust import check_destinations, open_existing

if TYPE_CHECKING:
    from malt_jax.config.model import ModelConfig
    from malt_jax.config.run import Config
    from malt_jax.evaluation.systems import System
    from malt_jax.models.spec import ModelSpec
    from malt_jax.models.tokenizer import Tokenizer
    from malt_jax.progress import Progress
    from malt_jax.stages.session import Session
    from malt_jax.storage.rundir import RunDir
    from malt_jax.tasks.base import Question
    from malt_jax.tree.roles import Chain, Role

MAX_WIDTH = 1000
"""Columns of a printed table, at most, whatever COLUMNS says."""


def read_config(invocation: Invocation) -> Config:
    """The config file with the flags over it; without one, the config of the run directory."""
    from malt_jax import config
    from malt_jax.config import reading
    from malt_jax.storage import manifest

    flags, options = invocation.fields, invocation.options
    _check_texts(options)
    if options.config:
        return _checked(config.load(options.config, flags))
    # Only what the flags say, without defaults: it tells which run is meant, or that none is.
    said = reading.apply_flags({}, flags)
    folder = str(said.get("output_dir", config.Config().output_dir))
    check_place("output_dir", folder)
    if os.path.exists(Path(folder, manifest.NAME)):
        # The run may have been moved, so its folder overrides the saved `output_dir`.
        flags = [*flags, "--output-dir", folder]
        return _checked(open_existing(folder, options.trust_task_code, flags)[0])
    if not said.keys() & {"model", "task", "pipeline"}:
        raise UserError(
            f"--config: none is given, and {folder} is not a run; give --config quickstart, a YAML "
            "file (`malt init` writes one), or the --output-dir of a run that was begun."
        )
    return _checked(config.load(None, flags))


def _check_texts(options: argparse.Namespace) -> None:
    """Refuses empty texts where a name belongs, as an unset variable gives them."""
    for name in ("redo", "join", "import"):
        given = getattr(options, name, None)
        if "" in (given if isinstance(given, list) else [given]):
            raise UserError(
                f"--{name}: found an empty text, as an unset variable gives; leave it out."
            )


def _checked(config: Config) -> Config:
    """The config, unless a command cannot send a run where it says."""
    scheme = (config.mirror or "").partition("://")[0]
    if scheme == "memory":
        raise UserError(
            f"mirror: {config.mirror} lies in the memory of this process and ends with it; give a "
            "folder, s3:// or gs://."
        )
    if config.export.push_to_hub:
        check_repository(config.export.push_to_hub, [r.name for r in config.pipeline.roles])
    return config


CHECKS_DEVICES = ("run", "search", "train", "eval", "export")
"""Commands that always compute on devices. A report may run beside a training, and so may a label,
unless it scores completions (`data.influence`)."""


@contextmanager
def open_session(invocation: Invocation, *, reads_input: bool) -> Iterator[Session]:
    """A session that is the run's only writer; SIGTERM and Ctrl-C stop it at a safe point.

    With `reads_input` the command works on questions and the model, and both are checked first, so
    that a wrong file or checkpoint leaves no run directory behind.
    """
    from malt_jax import progress
    from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
    from malt_jax.config.reading import apply_flags, to_dict
    from malt_jax.config.run import with_defaults
    from malt_jax.distributed import initialize
    from malt_jax.environment import devices
    from malt_jax.stages.session import Session
    from malt_jax.storage import manifest
    from malt_jax.storage.rundir import RunDir
    from malt_jax.storage.signals import graceful_stop
    from malt_jax.storage.writers import is_writer, wait_for_all

    config, command = read_config(invocation), invocation.command.name
    options = invocation.options
    if not options.config:
        said = apply_flags({}, invocation.fields)
        check_destinations(config, config.output_dir, options.trust_task_code, said)
    # 1. Find the other processes, before any device is touched.
    initialize(config.mesh)
    if command in CHECKS_DEVICES or (command == "label" and config.data.influence):
        devices()  # a device that cannot be used is refused before anything is read
    if is_writer() and (reads_input or command == "train"):  # other commands log nothing
        check_tracker(config)
    quiet = config.quiet or not is_writer()  # of several processes only the first one prints
    # 2. From here on a signal is a request to stop at a safe point.
    with graceful_stop(), progress.open_progress(quiet, command) as shown:
        # 3. Refuse what can be refused while nothing is written.
        # Without a run directory: no stage can run yet.
        session = Session(
            config, None, shown, profile=getattr(invocation.options, "profile", False)
        )
        new = not os.path.exists(Path(config.output_dir, manifest.NAME))
        if reads_input:
            prompts = new and command != "eval"  # `eval` refuses a new run anyway
            found = check_input(session, prompts=prompts)
            check_mesh(config, found[config.model].spec)
            if new or not _finished(config, command):
                check_room(config, specs_of(found), command, new=new)
        elif command == "train" and not new and not _finished(config, command):
            check_room(config, specs_of(check_models(config)), command, new=False)
        facts = {"devices": devices()} if new else None
        # 4. Open the run directory and take its lock.
        with RunDir.open(
            config.output_dir,
            to_dict(config),
            f"malt {command}",
            free=CANNOT_CHANGE_RESULTS,
            complete=with_defaults,
            facts=facts,
            mirror=config.mirror,
            mirror_seconds=config.mirror_seconds,
        ) as run:
            session.run = run
            try:
                # 5. Set aside what is to be made again, before any process looks at what is
                # finished.
                redo(invocation, run, shown)
                wait_for_all("stages begin")
                yield session
            except UserError:
                if new:
                    run.withdraw()
                raise
            finally:
                session.close()


def redo(invocation: Invocation, run: RunDir, progress: Progress) -> None:
    """Sets aside the stage that --redo names, and what was made from it."""
    from malt_jax.storage import manifest
    from malt_jax.storage.writers import on_writer

    if stage := invocation.options.redo:
        # A name that no stage has is refused below, with those there are.
        known = stage in manifest.load(run)["stages"]
        if known and not does(invocation.command.name, stage):
            raise UserError(
                f"--redo: `malt {invocation.command.name}` does not make {stage}; "
                f"use `malt run`, or the stage's own command."
            )

        def set_aside() -> None:
            folder = manifest.redo(run, stage)
            moved = f"; set aside in {folder}" if folder.exists() else ", and nothing was damaged"
            progress.note(f"{stage} is open again{moved}")

        on_writer(set_aside)


def does(command: str, stage: str) -> bool:
    """Whether a command makes this stage."""
    return command == "run" or stage.split("/")[0] == command


def _finished(config: Config, command: str) -> bool:
    """Whether all stages of a command are done, so that it only reads what there is."""
    from malt_jax.stages.names import EVAL, REPORT, search_stage, trained_stage
    from malt_jax.storage.manifest import stage_done

    last = config.rounds - 1
    stages = {"run": REPORT, "search": search_stage(last), "train": trained_stage(last)}
    return stage_done(config.output_dir, stages.get(command, EVAL))


def check_tracker(config: Config) -> None:
    """Refuses an experiment tracker that is not installed, and two of them."""
    from malt_jax.stages.session import ONE_TRACKER

    if config.wandb and config.trackio:
        raise UserError(ONE_TRACKER)
    for name in ("wandb", "trackio"):
        if getattr(config, name) and find_spec(name) is None:
            raise UserError(f"{name}: not installed; `pip install {name}`, or leave it out.")


def check_input(session: Session, *, prompts: bool = True) -> Models:
    """Checks what the run and its variants read: questions, models and, of a new run, prompts."""
    from malt_jax.credit.verdict import verdict_readers
    from malt_jax.models.adapters import other_base
    from malt_jax.stages.other_models import check_other
    from malt_jax.stages.session import Session
    from malt_jax.stages.variants import planned

    config = session.config
    systems, variants = planned(session)
    check_questions(session)
    verdict_readers(config.pipeline.roles)  # imports a user's own
    found = check_models(config)
    for role in config.pipeline.roles:
        if role.adapter and (note := other_base(role.adapter, config.model_of(role.name).path)):
            session.progress.note(note)
    for path in config.eval.models:
        check_other(path)
    if prompts:
        check_prompts(session, systems, found)
    for variant in variants:
        own = variant.config
        try:
            models = check_models(own, found)
            if _read_by(own) == _read_by(config):
                # A variant that reads the same input was checked with the run itself.
                continue
            inner = Session(own, None, session.progress)
            check_questions(inner)
            if prompts:
                check_prompts(inner, [variant.system], models)
        except UserError as error:
            raise error.at(f"ablations.{variant.folder}") from None
    return found


def _read_by(config: Config) -> tuple[Any, ...]:
    """The fields that decide whether questions, model and prompts fit each other."""
    turns = [
        (
            *(role.name, role.template, role.max_new_tokens),
            *(role.system, role.chat_template_kwargs, role.thinking, role.model),
        )
        for role in config.pipeline.roles
    ]
    return config.model, config.task, config.search.shard, turns


def check_questions(session: Session) -> None:
    """Refuses a run that has no questions to search or to evaluate on."""
    shard = session.config.search.shard
    if session.train_questions and session.eval_questions:
        return
    if not session.train_questions and shard != "1/1":
        raise UserError(f"search.shard: {shard} selects no questions; give a smaller k.")
    split = "eval" if session.train_questions else "train"
    raise UserError(f"task.{split}_path: found no question; at least one is needed.")


def check_mesh(config: Config, spec: ModelSpec) -> None:
    """Refuses a mesh whose size is not the number of devices here, on a single device too."""
    import jax

    from malt_jax.models.mesh import choose_layout, rules, slice_count
    from malt_jax.stages.bases import check_one_device

    devices = jax.devices()
    check_one_device(config, len(devices))
    choose_layout(config.mesh, len(devices), slice_count(devices), spec, 0, None)
    rules(config.mesh)


def check_prompts(
    session: Session,
    systems: Sequence[System],
    found: Models,
    questions: Sequence[Question] | None = None,
) -> None:
    """Refuses questions that are too long for a model now, and not hours later.

    Each question is rendered for the turn that leaves it the least room, without earlier turns.
    """
    from malt_jax.evaluation.systems import speaker

    config, pipeline = session.config, session.pipeline
    check_lengths(config, specs_of(found))
    names = [role.name for role in pipeline.roles]
    check_chat(pipeline, {name: found[config.model_of(name)].tokenizer for name in names})
    spoken = {role.name: role for role in pipeline.roles}
    for system in systems:
        spoken |= {turn.role.name: turn.role for turn in system.turns}
    if questions is None:
        questions = (*session.train_questions, *session.eval_questions)
    for base, model in found.items():
        own = [
            r for r in spoken.values() if config.model_of(speaker(r.name, pipeline).name) == base
        ]
        if own:
            _check_tightest(own, names, model, questions)


def _check_tightest(
    roles: Sequence[Role], names: Sequence[str], model: Found, questions: Sequence[Question]
) -> None:
    """Refuses questions that leave no room in the longest prompt of one model's roles."""
    from malt_jax.tree.prompts import fill, render

    spec, tokenizer = model
    # Earlier turns are empty here: this is the shortest prompt of each question.
    silent = dict.fromkeys(names, "")
    tightest = max(
        roles,
        key=lambda role: (
            role.config.max_new_tokens
            + len(role.tokenizer(tokenizer).prompt_ids(fill(role.template, silent)))
        ),
    )
    for question in questions:
        render(
            tightest.template,
            question.text,
            silent,
            tightest.tokenizer(tokenizer),
            room=spec.context - tightest.config.max_new_tokens,
            where=f"question {question.id}, {tightest.name}",
        )


def check_chat(pipeline: Chain, tokenizer: Tokenizer | Mapping[str, Tokenizer]) -> None:
    """Refuses roles whose chat settings or budget of thoughts do not fit the model's template."""
    from malt_jax.tree.expand import sampling_params
    from malt_jax.tree.roles import of_role

    for index, role in enumerate(pipeline.roles):
        where = f"pipeline.roles.{index}"
        field = "chat_template_kwargs" if role.config.chat_template_kwargs else "system"
        try:
            own = role.tokenizer(of_role(tokenizer, role.name))
            if own.has_chat_template:
                own.render("")
        except UserError as error:
            raise UserError(f"{where}.{field}: {error}") from None
        try:
            sampling_params(role, own)
        except UserError as error:
            raise UserError(f"{where}.{error}") from None


def check_lengths(config: Config, specs: Mapping[ModelConfig, ModelSpec]) -> None:
    """Refuses a turn whose `max_new_tokens` leaves no room for a prompt."""
    for index, role in enumerate(config.pipeline.roles):
        spec = specs[config.model_of(role.name)]
        if role.max_new_tokens >= spec.context:
            raise UserError(
                f"pipeline.roles.{index}.max_new_tokens: found {role.max_new_tokens}, but "
                f"prompt and completion share the model's context of {spec.context} tokens; "
                "lower it."
            )


def print_table(table: Any) -> None:
    """Prints a `rich` table, or a line of text, on standard output.

    It is as wide as COLUMNS says or as the terminal; without a terminal it is wide.
    """
    import sys

    from rich.console import Console

    from malt_jax.escape import one_line

    width = min(shutil.get_terminal_size((160, 40)).columns, MAX_WIDTH)
    console = Console(file=sys.stdout, width=width, height=40)  # without these, it reads COLUMNS
    text = one_line(table) if isinstance(table, str) else table
    console.print(text, markup=False, highlight=False)
