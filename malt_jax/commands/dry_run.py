"""`--dry-run`: describes what a command would do, without writing anything."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from malt_jax.commands.bases import specs_of
from malt_jax.commands.command import Invocation
from malt_jax.commands.launch import check_input, check_tracker, read_config
from malt_jax.commands.room import check_room
from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.config.pipeline import PHASES, split_phases
from malt_jax.config.reading import leaves, to_dict
from malt_jax.config.run import with_defaults
from malt_jax.errors import UserError
from malt_jax.escape import one_line, visible
from malt_jax.progress import Progress, counted
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.rundir import RunDir

if TYPE_CHECKING:
    from malt_jax.commands.bases import Models
    from malt_jax.config.run import Config
    from malt_jax.tasks.base import Question


def describe(invocation: Invocation) -> str:
    """The whole account as text; raises UserError for what the command itself would refuse."""
    config, command = read_config(invocation), invocation.command.name
    # These are the command's own checks, and none of them writes.
    check_tracker(config)
    session = Session(config, None, Progress(quiet=True))
    RunDir.check(
        config.output_dir, to_dict(config), free=CANNOT_CHANGE_RESULTS, complete=with_defaults
    )
    found = check_input(session)
    finished, begun = _stages(config)
    check_room(config, specs_of(found), command, new=not (finished or begun))
    if (redo := invocation.options.redo) and redo not in (*finished, *begun):
        known = ", ".join((*finished, *begun)) or "none yet"
        raise UserError(
            f"{config.output_dir}: no stage named {redo!r} to redo; there are: {known}."
        )
    for place in getattr(invocation.options, "join", None) or ():
        # A mirror is not looked at here.
        if "://" not in place:
            RunDir.existing(place)
    lines = [
        f"malt {command} would do this. Nothing was written.",
        "",
        *_run(config, finished, begun, redo),
        *_models(config, found),
        *_search(session),
        *_training(config),
        *_systems(session),
        *_export(config),
        *prompts(session, found, session.train_questions[0]),
    ]
    return "\n".join(lines)


def _stages(config: Config) -> tuple[list[str], list[str]]:
    """The finished and the begun stages of the run directory."""
    if not os.path.exists(Path(config.output_dir, manifest.NAME)):
        return [], []
    stages = manifest.load(config.output_dir)["stages"]
    finished = [name for name, stage in stages.items() if stage["done"]]
    return finished, [name for name in stages if name not in finished]


def _run(config: Config, finished: list[str], begun: list[str], redo: str | None) -> Iterator[str]:
    yield f"run directory: {Path(config.output_dir).absolute()}"
    if not os.path.exists(Path(config.output_dir, manifest.NAME)):
        yield "  it would be made"
        return
    yield f"  it exists; finished: {', '.join(finished) or 'nothing'}"
    if begun:
        yield f"  begun: {', '.join(begun)}"
    if redo:
        yield f"  what is damaged of {redo}, and all after it, would be set aside and made again"


def _models(config: Config, found: Models) -> Iterator[str]:
    for base, (spec, tokenizer) in found.items():
        roles = [r.name for r in config.pipeline.roles if config.model_of(r.name) == base]
        whose = "" if base == config.model else f" of the {', '.join(roles)}"
        chat = "its chat template" if tokenizer.has_chat_template else "no chat template"
        yield f"model{whose}: {one_line(base.path)}"
        yield (
            f"  {spec.family}, {spec.num_layers} layers of width {spec.d_model}, a context of "
            f"{spec.context:,} tokens, a vocabulary of {spec.vocab:,}, {chat}"
        )


def _search(session: Session) -> Iterator[str]:
    from malt_jax.tree.adaptive import first_pass
    from malt_jax.tree.node import WIDEST

    config, pipeline = session.config, session.pipeline
    questions = len(session.train_questions)
    # The nodes at a depth are the product of all branches down to it.
    levels = [math.prod(pipeline.branches[: n + 1]) for n in range(len(pipeline.branches))]
    yield f"task: {session.task.name}, {one_line(session.task.description)}"
    yield f"  {questions:,} questions to search, {len(session.eval_questions):,} to evaluate on"
    yield f"search: {counted(config.rounds, 'round')}"
    yield (
        f"  {' + '.join(map(str, levels))} = {pipeline.calls} completions per question, "
        f"{pipeline.calls * questions:,} per round; {levels[-1]} answers per question are graded"
    )
    least = first_pass(pipeline.branches, config.search.spare)
    for role, first in zip(config.pipeline.roles, least, strict=True):
        often = f"{role.branch} per prefix"
        if first < role.branch:
            often += f" on average, {first} to {WIDEST * role.branch}"
        yield (
            f"  {role.name}: {often}, temperature {role.temperature:g}, "
            f"at most {role.max_new_tokens} tokens"
        )
    above = f"above {config.search.threshold:g}"
    positive = {
        "value": above,
        "advantage": "if better than its siblings",
        "both": f"{above} and if better than its siblings",
    }[config.data.positives]
    yield (
        f"label: value by {config.search.backup}, positive {positive}; "
        f"SFT on {config.data.sft}, pairs {config.data.pairs}, "
        f"{config.data.pairs_per_prefix} per prefix"
    )


def _training(config: Config) -> Iterator[str]:
    train = config.train
    weights = "all weights" if train.full else f"LoRA of rank {train.lora.rank}"
    whose = "one set for all roles" if config.sharing == "shared" else "each role its own"
    yield f"train: {weights}, {whose}"
    for role in config.pipeline.roles:
        names = [_title(phase) for phase in split_phases(role.train)]
        own = ", ".join(f"{field} {value}" for field, value in leaves(role.training) if field)
        own = f"; its own {own}" if own else ""
        yield f"  {role.name}: {', then '.join(names) or 'nothing'}{own}"
    strength = {"dpo": f", beta {train.dpo.beta:g}", "kto": f", beta {train.kto.beta:g}"}
    # SFT in any case, by which the STaR baseline learns.
    used = {"sft"}.union(*(split_phases(role.train) for role in config.pipeline.roles))
    for name in (phase for phase in PHASES if phase in used):
        phase = train.phase(name)
        steps = phase.loop.steps
        length = counted(steps, "step") if steps else counted(phase.epochs, "epoch")
        yield (
            f"  {_title(name)}: {length}, batch {phase.batch_size}, "
            f"learning rate {phase.optim.learning_rate:g}{strength.get(name, '')}"
        )


def _title(phase: str) -> str:
    return "policy gradient" if phase == "pg" else phase.upper()


def _systems(session: Session) -> Iterator[str]:
    from malt_jax.stages.variants import planned, shared_stages

    systems, variants = planned(session)
    yield f"eval: {len(systems)} systems against {session.config.eval.baseline}"
    for system in systems:
        turns = " ".join(f"{turn.role.name}:{turn.policy}" for turn in system.turns)
        agents = f" x {system.agents} agents" if system.agents > 1 else ""
        votes = ", ".join(map(str, system.votes))
        yield f"  {one_line(system.name)}: {turns}{agents}; votes of {votes}"
    if variants:
        yield f"ablations: {len(variants)} variants of the run, each trained and evaluated"
    for variant in variants:
        stages = list(shared_stages(session.config, variant.config))
        shared = f"the run's own up to {stages[-1]}" if stages else "nothing in common with the run"
        yield f"  {variant.system.name}: {one_line(variant.system.label)}; {shared}"


def _export(config: Config) -> Iterator[str]:
    parts = ["a merged model"] * config.export.merged + ["a PEFT adapter"] * (not config.train.full)
    yield f"export: {' and '.join(parts) or 'a card'} in each of"
    for role in config.pipeline.roles:
        yield f"  {Path(config.output_dir, 'export', role.name).absolute()}"
    if config.export.push_to_hub:
        yield f"  and to the hub, as {one_line(config.export.push_to_hub)}-ROLE, private"


def prompts(session: Session, found: Models, question: Question) -> Iterator[str]:
    """A question's prompt for each role, with a placeholder for each earlier turn."""
    from malt_jax.tree.prompts import render

    said: dict[str, str] = {}
    for role in session.pipeline.roles:
        spec, tokenizer = found[session.config.model_of(role.name)]
        own = role.tokenizer(tokenizer)
        prompt = render(
            role.template,
            question.text,
            said,
            own,
            room=spec.context - role.config.max_new_tokens,
            overflow=session.config.pipeline.overflow,
            where=f"{question.id}, {role.name}",
        )
        text = own.render(prompt.text) if own.has_chat_template else prompt.text
        tokens = f"{len(prompt.ids)} tokens" + (" without the turns before" if said else "")
        yield ""
        yield f"first prompt of the {role.name}, {tokens}:"
        yield from (f"  | {line}" for line in visible(text).splitlines())
        said[role.name] = f"[what the {role.name} says]"
