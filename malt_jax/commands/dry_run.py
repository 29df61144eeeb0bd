"""`--dry-run`: describes what a command would do, without writing anything."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.commands.bases import check_models, specs_of
from malt_jax.commands.command import Invocation
from malt_jax.commands.launch import check_input, check_tracker, does, read_config
from malt_jax.commands.room import check_room
from malt_jax.commands.stage import READ_INPUT, _measures_training
from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.config.pipeline import PHASES, split_phases
from malt_jax.config.reading import apply_flags, leaves, to_dict
from malt_jax.config.run import with_defaults
from malt_jax.distributed import find_place
from malt_jax.errors import UserError
from malt_jax.escape import one_line, visible
from malt_jax.progress import Progress, counted
from malt_jax.stages.names import EVAL, EXPORT, REPORT, label_stage, search_stage, trained_stage
from malt_jax.stages.session import Session
from malt_jax.stages.slices import lacking
from malt_jax.stages.trust import check_destinations
from malt_jax.storage import manifest, mirror
from malt_jax.storage.rundir import RunDir

Stages = Mapping[str, Any]
"""The stages of a run's manifest by name."""

if TYPE_CHECKING:
    from malt_jax.commands.bases import Models
    from malt_jax.config.run import Config
    from malt_jax.tasks.base import Question


def describe(invocation: Invocation) -> str:
    """The whole account as text; raises UserError for what the command itself would refuse.

    Devices are not looked at: asking for them could disturb a run that computes on them.
    """
    config, command = read_config(invocation), invocation.command.name
    options = invocation.options
    if getattr(options, "preview", False):
        return _previewed(config, options)
    # These are the command's own checks, and none of them writes.
    if not options.config:
        said = apply_flags({}, invocation.fields)
        check_destinations(config, config.output_dir, options.trust_task_code, said)
    find_place(config.mesh)
    if command in READ_INPUT or command == "train":
        check_tracker(config)
    session = Session(config, None, Progress(quiet=True))
    _check_place(config)
    stages = _stages(config)
    _check_redo(config, command, options.redo, stages)
    found = _check_input(session, command)
    left = _left(session, command, options, stages)
    if found and left:
        check_room(config, specs_of(found), command, new=not stages)
    lines = [
        f"malt {command} would do this. Nothing was written.",
        "",
        *_run(config, stages, options.redo),
    ]
    if left:
        return "\n".join([*lines, *_described(session, command, options, found, stages)])
    return "\n".join([*lines, NOTHING_LEFT.get(command, "nothing is left to do")])


NOTHING_LEFT = {
    "run": "nothing is left to do but to print the table",
    "eval": "nothing is left to do but to print the table",
    "export": "nothing is left to do, but for merged models, a dataset or an upload that the "
    "export lacks",
    "report": "nothing is left to do, unless an evaluation was made since",
}
"""What commands say whose stages are finished."""


def _described(
    session: Session, command: str, options: Namespace, found: Models, stages: Stages
) -> Iterator[str]:
    """The stages of a command."""
    config = session.config
    if found:
        yield from _models(config, found)
    if command in ("run", "search"):
        yield from _search(session)
    if command in ("run", "label"):
        yield from _label(config)
    if command == "label":
        yield from _sources(options)
    if command in ("run", "train"):
        yield from _training(config)
    if command == "eval":
        yield from _measured(session, stages)
    if command in ("run", "eval"):
        yield from _systems(session)
    if command in ("run", "export"):
        yield from _export(config)
    if command == "report":
        yield f"report: {Path(config.output_dir, 'report.html').absolute()}"
    if command in ("run", "search"):
        yield from prompts(session, found, session.train_questions[0])
    if command == "eval":
        yield from prompts(session, found, session.eval_questions[0])


def _previewed(config: Config, options: Namespace) -> str:
    """What `malt label --preview` would print, after the checks that it makes."""
    if options.join or getattr(options, "import"):
        raise UserError(
            "--preview: writes nothing, so it cannot join or import; do so with `malt label`."
        )
    run = RunDir.existing(config.output_dir)
    rounds = [search_stage(n) for n in range(config.rounds)]
    searched = [name for name in rounds if manifest.stage_done(run, name)]
    if rounds[0] not in searched:
        raise _not_finished(config, rounds[0])
    return (
        "malt label --preview would print what every credit rule selects from the trees of "
        f"{', '.join(searched)} in {run.path}. It writes nothing, with or without --dry-run."
    )


def _check_place(config: Config) -> None:
    """Refuses a folder that can be no run directory, and a mirror that can be none of this run."""
    path = Path(config.output_dir).absolute()
    RunDir.check(path, to_dict(config), free=CANNOT_CHANGE_RESULTS, complete=with_defaults)
    around = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    if not around.is_dir():
        raise UserError(f"{path}: {around} is a file; choose another --output-dir.")
    if config.mirror:
        mirror.refuse_overlap(config.mirror, path)


def _check_redo(config: Config, command: str, redo: str | None, stages: Stages) -> None:
    if redo and redo not in stages:
        known = ", ".join(stages) or "none yet"
        raise UserError(
            f"{config.output_dir}: no stage named {redo!r} to redo; there are: {known}."
        )
    if redo and not does(command, redo):
        raise UserError(
            f"--redo: `malt {command}` does not make {redo}; use `malt run`, or the stage's own "
            "command."
        )


def _check_input(session: Session, command: str) -> Models:
    """The models that a command reads, checked with all else that it reads."""
    if command in READ_INPUT:
        return check_input(session)
    return check_models(session.config) if command in ("train", "export") else {}


def _stages(config: Config) -> Stages:
    """The stages that the run directory has, in their order."""
    if not os.path.exists(Path(config.output_dir, manifest.NAME)):
        return {}
    return manifest.load(config.output_dir)["stages"]


def _left(session: Session, command: str, options: Namespace, stages: Stages) -> bool:
    """Whether a command has something to do; raises UserError if what it works on is missing."""
    config, redo = session.config, options.redo
    # What is made again takes all stages after it along.
    kept = list(stages)[: list(stages).index(redo)] if redo else list(stages)
    done = [name for name in kept if stages[name]["done"]]
    if command in EVERY_ROUND:
        return _rounds_left(config, command, options, done)
    last = trained_stage(config.rounds - 1)
    if last not in done:
        # The systems of an evaluation are often looked at before a run is begun.
        begun = command == "eval" and stages
        if command == "export" or (begun and _measures_training(session)):
            raise _not_finished(config, last)
    return {"run": REPORT, "eval": EVAL, "export": EXPORT, "report": REPORT}[command] not in done


EVERY_ROUND = {
    "search": (search_stage, trained_stage, 1),
    "label": (label_stage, search_stage, 0),
    "train": (trained_stage, label_stage, 0),
}
"""The stage that a command makes in a round, the one it works on, and how many rounds before."""


def _rounds_left(config: Config, command: str, options: Namespace, done: Sequence[str]) -> bool:
    own, needs, earlier = EVERY_ROUND[command]
    sources = (getattr(options, name, None) for name in ("join", "import"))
    if any(sources):  # the search of the first round, which is all that is missing
        done = [*done, search_stage(0)]
    left = False
    for round in range(config.rounds):
        if round >= earlier and (before := needs(round - earlier)) not in done:
            if not left:
                raise _not_finished(config, before)
            break
        left = left or own(round) not in done
    return left


def _not_finished(config: Config, stage: str) -> UserError:
    command = stage.partition("/")[0]
    return UserError(
        f"{config.output_dir}: {stage} is not finished, and this stage works on its result; run "
        f"`malt {command}` with the same config first, or `malt run` for everything."
    )


def _run(config: Config, stages: Stages, redo: str | None) -> Iterator[str]:
    yield f"run directory: {Path(config.output_dir).absolute()}"
    if not os.path.exists(Path(config.output_dir, manifest.NAME)):
        yield "  it would be made"
        return
    finished = [_named(name, stage) for name, stage in stages.items() if stage["done"]]
    begun = [name for name, stage in stages.items() if not stage["done"]]
    yield f"  it exists; finished: {', '.join(finished) or 'nothing'}"
    if begun:
        yield f"  begun: {', '.join(begun)}"
    if redo:
        yield f"  what is damaged of {redo}, and all after it, would be set aside and made again"


def _named(name: str, stage: Mapping[str, Any]) -> str:
    # Sealed without weights: no role learns by this phase, or there was no example.
    trained = stage["units"] or not does("train", name)
    return name if trained else f"{name} (nothing to train)"


def _sources(options: Namespace) -> Iterator[str]:
    """Where the trees come from that are labelled, if not from a search of this run."""
    for place in options.join or ():
        if "://" in place:
            yield f"  trees of {place}, a mirror, which is not looked at here"
            continue
        state = lacking(place)
        if state and not options.wait:
            RunDir.existing(place)
            raise UserError(
                f"--join: {place} has not finished its search ({state}); run `malt search` with "
                "its config again first, or add --wait MINUTES."
            )
        waits = f" ({state}; waited for, at most {options.wait:g} minutes)" if state else ""
        yield f"  trees of {place}{waits}"
    for file in getattr(options, "import") or ():
        if not os.path.exists(file):
            raise UserError(f"--import: {file}: no such file.")
        yield f"  trees of {file}"


def _measured(session: Session, stages: Stages) -> Iterator[str]:
    """What an evaluation asks."""
    config, questions = session.config, len(session.eval_questions)
    yield f"task: {session.task.name}, {one_line(session.task.description)}"
    yield f"  {questions:,} questions to evaluate on"
    if trees := min(config.eval.trees, questions):
        yield f"  the whole trees of {counted(trees, 'question')}, before and after training"
    if not stages and _measures_training(session):
        last = trained_stage(config.rounds - 1)
        yield f"  not before {last} is finished; until then `malt eval` is refused"


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


def _label(config: Config) -> Iterator[str]:
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
