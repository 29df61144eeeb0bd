"""Train: each role learns from its own data, phase by phase (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import malt_jax as malt
from malt_jax.config.pipeline import RoleConfig, split_phases
from malt_jax.data.role_data import STAR, RoleData, policy_name
from malt_jax.errors import UserError
from malt_jax.evaluation.systems import make_systems
from malt_jax.memory import release_programs, restart_peak
from malt_jax.planning.utilisation import training_utilisation
from malt_jax.progress import counted
from malt_jax.stages.mismatch import check_mismatch
from malt_jax.stages.names import train_stage
from malt_jax.stages.policies import PHASES, WeightLoader, latest, phases_of, weights_folder
from malt_jax.stages.session import Session
from malt_jax.storage.checkpoints import CheckpointFolder
from malt_jax.storage.metrics import Series
from malt_jax.training.dataset import admit
from malt_jax.training.fit import RATIO_SLACK
from malt_jax.training.loop import OnStep, TrainOutcome
from malt_jax.training.mismatch import Mismatch

SHOWN = ("loss", "accuracy", "margin", "ratio", "clip_fraction")
"""Metrics of the last step that the line about a finished phase names."""


def train(session: Session, round: int) -> None:
    """All policies of a round, one after the other over the one resident base.

    Beside the roles' policies there is the single agent of the STaR baseline, by SFT only, if a
    system to be measured answers with it. A policy without data keeps the weights it had.
    """
    roles = {role.name: split_phases(role.config.train) for role in session.pipeline.roles}
    # Each policy once, in the order of the roles: with `shared` all of them have one name.
    names = dict.fromkeys(policy_name(role, session.config.sharing) for role in roles)
    mismatches: dict[tuple[str, ...], Mismatch] = {}
    for name in names:
        for phase in phases_of(session.config, name):
            _train_phase(session, round, name, phase, roles, mismatches)
    # Called even if nothing is measured with it: its seal marks the round as trained.
    star = {STAR: ("sft",) if _is_measured(session) else ()}
    _train_phase(session, round, STAR, "sft", star, mismatches)


def _train_phase(
    session: Session,
    round: int,
    name: str,
    phase: str,
    roles: Mapping[str, tuple[str, ...]],
    mismatches: dict[tuple[str, ...], Mismatch],
) -> None:
    """Trains one policy by one phase, from the weights that the phase before it left."""
    config, stage = session.config, train_stage(round, name, phase)
    with session.journal(stage) as journal:
        if journal.done:
            return
        data = {
            role: session.role_data(round, role, phase)
            for role, phases in roles.items()
            if phase in phases and policy_name(role, config.sharing) == name
        }
        if not _can_learn(session, name, phase, data):
            if data:
                session.progress.note(f"{stage}: no {phase} data, {name} keeps its weights")
            # Leaving the block seals the stage without weights, and `latest` passes over it.
            return
        # The first phase begins with what the round before left, by which the trees were searched.
        searched_by = latest(session, round - 1, name)
        before = latest(session, round, name, PHASES[: PHASES.index(phase)])
        load = WeightLoader(session)
        # Measured before the phase's own weights are loaded, so that full ones are held only once.
        check_mismatch(session, round, name, phase, [*data], load, mismatches)
        release_programs()  # those that scored would lie beside the step's
        start = load(before) or session.initial_weights(name)
        if phase == "pg":
            for role in config.pipeline.roles:
                if role.name in data and (warning := _sampling_warning(role, config.search.spare)):
                    session.progress.note(f"{stage}: {warning}")
        folder = weights_folder(session, round, name, phase)
        examples = [example for d in data.values() for example in d.of(phase)]
        session.progress.watch(dict)  # the sampler is at rest
        # Other objectives compare with the start: a pass over all examples, minutes long on a CPU.
        first = "compiling" if phase == "sft" else "first a pass for their log-probabilities"
        count = counted(len(examples), "example")
        session.progress.note(f"{stage}: {count}, from {before}; {first}")
        model = session.bases.model_of(name)
        per_token = training_utilisation(model.spec, examples, config.train.full)
        # What is measured once and not in a step has a series of its own.
        key = round, name, phase
        series, measured = (session.metrics.series(kind, *key) for kind in ("train", "trained"))

        def on_phase(policy: str, outcome: TrainOutcome) -> None:
            session.progress.note(f"{stage}: {_sentence(outcome)}")
            if warning := _ratio_warning(outcome, before == searched_by):
                session.progress.note(f"{stage}: {warning}")
            measured.log(outcome.steps, outcome.measured)
            journal.record_cost(
                seconds=outcome.seconds,
                steps=outcome.steps,
                tokens=outcome.tokens,
                padding_waste=outcome.padding_waste,
                peak_bytes=outcome.peak_bytes,
                counts=outcome.counts,
            )

        restart_peak()  # so that a phase's peak on a CPU is its own
        with session.profiler.stage(stage):
            malt.train(
                model,
                data,
                pipeline=config.pipeline,
                sharing=config.sharing,
                # A role's own fields are in the pipeline, and are laid over these.
                lora=config.train.lora,
                sft=config.train.sft,
                dpo=config.train.dpo,
                kto=config.train.kto,
                pg=config.train.pg,
                start={name: start},
                on_policy=before == searched_by,
                saver=CheckpointFolder(folder, config.save_minutes),
                seed=config.seed,
                mesh=session.mesh,
                on_step=_shown(session, stage, series, per_token),
                on_phase=on_phase,
            )
        # The whole folder is one unit: final weights and, except for SFT, the log-probabilities
        # at the start.
        journal.add(folder)
    release_programs()  # the next phase has other shapes, and mostly compiles its own


def _can_learn(session: Session, name: str, phase: str, data: Mapping[str, RoleData]) -> bool:
    """Whether there is an example; raises UserError if there are, and none of them fits."""
    examples = [example for d in data.values() for example in d.of(phase)]
    limit = session.config.training_of(name).phase(phase).loop.max_length
    kept, counts = admit(examples, limit)
    if not kept and counts["no_room"] + counts["too_long"]:
        raise UserError(
            f"train.{phase}.loop.max_length: none of {counted(len(examples), 'example')} of "
            f"{name} fits {limit} tokens ({counts}); raise it, in a run that takes over this "
            "one's trees (--join)."
        )
    return bool(kept)


def _shown(session: Session, stage: str, series: Series, per_token: float | None) -> OnStep:
    """Logs every step and shows it in the progress line; `per_token`: its utilisation, if known."""

    def on_step(step: int, steps: int, record: dict[str, float]) -> None:
        shown: dict[str, Any] = {metric: record[metric] for metric in ("loss", "tokens_per_s")}
        if per_token is not None:
            utilisation = record["tokens_per_s"] * per_token
            record = {**record, "utilisation": utilisation}
            shown["MFU"] = f"{utilisation:.1%}"
        series.log(step, record)
        session.progress.update(stage, step, steps, **shown)
        session.profiler.between_steps(last=step == steps)

    return on_step


def _is_measured(session: Session) -> bool:
    """Whether a system of the evaluation answers with the STaR single agent."""
    systems = make_systems(session.config.eval, session.pipeline, session.task.templates)
    return any(turn.policy == STAR for system in systems for turn in system.turns)


def _sentence(outcome: TrainOutcome) -> str:
    """The metrics of the last step and what happened on the way."""
    last = outcome.log[-1] if outcome.log else {}
    shown = [f"{name} {last[name]:.3f}" for name in SHOWN if name in last]
    counts = [f"{count} {name}" for name, count in outcome.counts.items() if count]
    stopped = [f"stopped early, best step {outcome.best_step}"] if outcome.stopped_early else []
    steps = f"{counted(outcome.steps, 'step')} in {outcome.seconds:.1f} s"
    moved = [f"KL from its start {outcome.measured['kl_from_start']:.2g} per token"]
    if fullest := outcome.measured.get("expert_load_max"):
        unused = outcome.measured["experts_unused"]
        moved.append(f"fullest expert {fullest:.1f} times an even share, {unused:.0%} unused")
    return ", ".join([steps, *shown, *counts, *stopped, *moved])


def _ratio_warning(outcome: TrainOutcome, on_policy: bool) -> str | None:
    """A sentence if a policy gradient met other log-probabilities than the search had stored."""
    gap = outcome.measured.get("start_ratio_gap", 0.0)
    if not on_policy or gap <= RATIO_SLACK:
        return None
    return (
        f"WARNING: probability ratios begin at up to {gap:.2g} from 1 (mean "
        f"{outcome.measured['start_ratio']:.4f}), and clipping acts on that as if the policy had "
        "moved. The cause is unknown: search and training may round differently in this dtype or "
        "on this device, or the samples may be of slightly other weights"
    )


def _sampling_warning(role: RoleConfig, spare: int = 0) -> str | None:
    """A sentence if a role's completions are not plain draws from the policy of the ratio."""
    reasons = []
    if spare:
        reasons.append(
            f"search.spare is {spare}, so that the number of siblings depends on outcomes; set 0"
        )
    if (role.temperature, role.top_p, role.top_k) != (1.0, 1.0, 0):
        reasons.append(
            f"it samples at temperature {role.temperature:g}, top_p {role.top_p:g}, top_k "
            f"{role.top_k}; set 1, 1 and 0"
        )
    if not reasons:
        return None
    return f"WARNING: the policy gradient of {role.name} is biased: {'. Besides, '.join(reasons)}"
