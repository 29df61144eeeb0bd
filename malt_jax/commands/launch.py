"""From a command line to a session on a run directory, checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.commands.command import Invocation
from malt_jax.errors import UserError

if TYPE_CHECKING:
    from malt_jax.config import Config
    from malt_jax.models.spec import ModelSpec
    from malt_jax.models.tokenizer import Tokenizer
    from malt_jax.progress import Progress
    from malt_jax.stages.session import Session


def read_config(invocation: Invocation) -> Config:
    """The config file with the flags over it; without a file, that of the run standing there."""
    from malt_jax import config, settings
    from malt_jax.storage import manifest
    from malt_jax.storage.rundir import RunDir

    flags = invocation.fields
    if invocation.options.config:
        return config.load(invocation.options.config, flags)
    folder = str(settings.apply_flags({}, flags).get("output_dir") or config.Config().output_dir)
    if os.path.exists(Path(folder, manifest.NAME)):
        return config.from_dict(RunDir.existing(folder).config, [*flags, "--output-dir", folder])
    if not settings.apply_flags({}, flags).keys() & {"model", "task", "pipeline"}:
        raise UserError(
            f"--config: none is given, and {folder} is not a run; give --config quickstart, a YAML "
            "file (`malt init` writes one), or the --output-dir of a run that was begun."
        )
    return config.load(None, flags)


@contextmanager
def open_session(invocation: Invocation, *, reads_input: bool) -> Iterator[Session]:
    """A session as the run's only writer, which SIGTERM and Ctrl-C stop at the next safe point.

    `reads_input`: the command works on questions and the model, so both are looked at first: a
    wrong file or checkpoint must not leave a run directory behind.
    """
    from malt_jax import progress
    from malt_jax.config import CANNOT_CHANGE_RESULTS
    from malt_jax.distributed import initialize
    from malt_jax.settings import to_dict
    from malt_jax.storage import manifest
    from malt_jax.storage.rundir import RunDir
    from malt_jax.storage.signals import graceful_stop
    from malt_jax.storage.writers import meet, writes

    config, command = read_config(invocation), invocation.command.name
    initialize(config.mesh)
    quiet = config.quiet or not writes()  # of several processes the first one speaks for all
    with graceful_stop(), progress.open_progress(quiet, command) as shown:
        session = look(config, shown)
        new = not os.path.exists(Path(config.output_dir, manifest.NAME))
        if reads_input:
            check_questions(session)
            spec, tokenizer = check_model(config)
            if new and command != "eval":  # which a new run is refused anyway
                check_prompts(session, spec, tokenizer)
        facts = {"devices": devices()} if new else None
        with RunDir.open(
            config.output_dir,
            to_dict(config),
            f"malt {command}",
            free=CANNOT_CHANGE_RESULTS,
            facts=facts,
            mirror=config.mirror,
        ) as run:
            session.run = run
            try:
                if (stage := invocation.options.redo) and writes():
                    shown.note(f"{stage} again; set aside in {manifest.redo(run, stage)}")
                meet("stages begin")
                yield session
            except UserError:
                if new:
                    run.withdraw()
                raise
            finally:
                session.close()


def look(config: Config, progress: Progress) -> Session:
    """A session without a run directory: its questions, roles and systems, but no stage."""
    from malt_jax.stages.session import Session

    return Session(config, None, progress)


def check_questions(session: Session) -> None:
    """Reads everything that names questions, roles, systems or variants, for the errors in it."""
    from malt_jax.stages.variants import planned

    planned(session)
    if not session.train_questions or not session.eval_questions:
        split = "eval" if session.train_questions else "train"
        raise UserError(f"task.{split}_path: no question; at least one is needed.")


def check_model(config: Config) -> tuple[ModelSpec, Tokenizer]:
    """The structure and tokenizer of the base model, without its weights but for their headers."""
    from malt_jax.models.checkpoint import Checkpoint
    from malt_jax.models.hf_config import read_spec
    from malt_jax.models.hub import local_folder
    from malt_jax.models.tokenizer import load_tokenizer

    try:
        folder, _ = local_folder(config.model.path, config.model.revision)
        spec = read_spec(folder)
        Checkpoint(folder)
        return spec, load_tokenizer(folder)
    except UserError as error:
        raise UserError(f"model.path: {error}") from None


def check_prompts(session: Session, spec: ModelSpec, tokenizer: Tokenizer) -> None:
    """Refuses questions too long for the model now, not when their turn comes hours later.

    Every question is tried in the turn with the least room, before anything was said.
    """
    from malt_jax.stages.variants import planned
    from malt_jax.tree.prompts import fill, render

    check_lengths(session.config, spec)
    pipeline = session.pipeline
    spoken = {role.name: role for role in pipeline.roles}
    for system in planned(session)[0]:
        spoken |= {turn.role.name: turn.role for turn in system.turns}
    silent = {role.name: "" for role in pipeline.roles}
    tightest = max(
        spoken.values(),
        key=lambda role: (
            role.config.max_new_tokens + len(tokenizer.prompt_ids(fill(role.template, silent)))
        ),
    )
    for question in (*session.train_questions, *session.eval_questions):
        render(
            tightest.template,
            question.text,
            silent,
            tokenizer,
            room=spec.context - tightest.config.max_new_tokens,
            where=f"question {question.id}, {tightest.name}",
        )


def check_lengths(config: Config, spec: ModelSpec) -> None:
    """Refuses a turn that leaves its prompt no room at all."""
    for index, role in enumerate(config.pipeline.roles):
        if role.max_new_tokens >= spec.context:
            raise UserError(
                f"pipeline.roles.{index}.max_new_tokens: found {role.max_new_tokens}, but "
                f"prompt and completion share the model's context of {spec.context} tokens; "
                "lower it."
            )


def devices() -> list[str]:
    """What JAX computes on, one line a device."""
    import jax

    return [f"{device.platform} {device.device_kind} {device.id}" for device in jax.devices()]


def print_table(table: Any) -> None:
    """A `rich` table, or a line of text, on standard output.

    Where that is no terminal it is as wide as COLUMNS says, or wide.
    """
    import sys

    from rich.console import Console

    from malt_jax.escape import one_line

    columns = os.environ.get("COLUMNS", "")
    piped = (int(columns) if columns.isdecimal() else 0) or 160
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else piped)
    text = one_line(table) if isinstance(table, str) else table
    console.print(text, markup=False, highlight=False)
