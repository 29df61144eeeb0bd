"""Train: each role is fine-tuned on its own data, SFT and then DPO (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Mapping

import malt_jax as malt
from malt_jax.data.role_data import STAR, RoleData, policy_name
from malt_jax.evaluation.systems import make_systems
from malt_jax.progress import counted
from malt_jax.stages.names import train_stage
from malt_jax.stages.policies import PHASES, Weights, latest, weights_folder
from malt_jax.stages.session import Session
from malt_jax.storage.checkpoints import CheckpointFolder
from malt_jax.training.loop import TrainOutcome


def train(session: Session, round: int) -> None:
    """All policies of a round, one after the other over the one resident base.

    Beside the roles' policies there is the single agent of the STaR baseline, by SFT only, if a
    system to be measured answers with it. A policy without data keeps the weights it had.
    """
    phases = {role.name: role.config.train for role in session.pipeline.roles}
    # Each policy once, in the order of the roles: with `shared` all of them have one name.
    names = dict.fromkeys(policy_name(role, session.config.sharing) for role in phases)
    for name in names:
        for phase in PHASES:
            _train_phase(session, round, name, phase, phases)
    # Called even if nothing is measured with it: its seal marks the round as trained.
    _train_phase(session, round, STAR, "sft", {STAR: "sft" if _is_measured(session) else "none"})


def _train_phase(
    session: Session, round: int, name: str, phase: str, phases: Mapping[str, str]
) -> None:
    """Trains one policy by SFT or by DPO, from the weights of its phase before."""
    config, stage = session.config, train_stage(round, name, phase)
    with session.journal(stage) as journal:
        if journal.done:
            return
        data = _examples(session, round, name, phase, phases)
        examples = sum(len(d.sft) + len(d.dpo) for d in data.values())
        if not examples:
            if data:
                session.progress.note(f"{stage}: no {phase} data, {name} keeps its weights")
            # Leaving the block seals the stage without weights, and `latest` passes over it.
            return
        # DPO begins with what this round's SFT left, SFT with the end of the round before.
        before = latest(session, round if phase == "dpo" else round - 1, name)
        start = Weights(session)(before) or session.initial_weights(name)
        folder = weights_folder(session, round, name, phase)
        series = session.metrics.series("train", round, name, phase)
        session.progress.watch(dict)  # the sampler is at rest
        count = counted(examples, "row")
        session.progress.note(f"{stage}: {count}, from {before}; the first step compiles")

        def on_step(step: int, steps: int, record: dict[str, float]) -> None:
            series.log(step, record)
            shown = {metric: record[metric] for metric in ("loss", "tokens_per_s")}
            session.progress.update(stage, step, steps, **shown)

        def on_phase(policy: str, outcome: TrainOutcome) -> None:
            session.progress.note(f"{stage}: {_sentence(outcome)}")
            journal.record_cost(
                seconds=outcome.seconds,
                steps=outcome.steps,
                tokens=outcome.tokens,
                padding_waste=outcome.padding_waste,
                peak_bytes=outcome.peak_bytes,
                counts=outcome.counts,
            )

        malt.train(
            session.model,
            data,
            pipeline=config.pipeline,
            sharing=config.sharing,
            lora=config.train.lora,
            sft=config.train.sft,
            dpo=config.train.dpo,
            start={name: start},
            saver=CheckpointFolder(folder),
            template="\n".join(role.template for role in session.pipeline.roles),
            seed=config.seed,
            mesh=session.mesh,
            on_step=on_step,
            on_phase=on_phase,
        )
        # The whole folder is one unit: final weights, and for DPO the reference's numbers.
        journal.add(folder)


def _examples(
    session: Session, round: int, name: str, phase: str, phases: Mapping[str, str]
) -> dict[str, RoleData]:
    """What the roles of a policy learn by one phase: `{role: data}` of the roles that take part."""
    data = {}
    for role, trained in phases.items():
        takes_part = trained == "sft+dpo" or (trained == "sft" and phase == "sft")
        if takes_part and policy_name(role, session.config.sharing) == name:
            data[role] = session.role_data(round, role, phase)
    return data


def _is_measured(session: Session) -> bool:
    """Whether a system of the evaluation answers with the STaR single agent."""
    systems = make_systems(session.config.eval, session.pipeline, session.task.templates)
    return any(turn.policy == STAR for system in systems for turn in system.turns)


def _sentence(outcome: TrainOutcome) -> str:
    """The metrics of the last step and what happened on the way."""
    last = outcome.log[-1] if outcome.log else {}
    shown = [f"{name} {last[name]:.3f}" for name in ("loss", "accuracy", "margin") if name in last]
    counts = [f"{count} {name}" for name, count in outcome.counts.items() if count]
    stopped = [f"stopped early, best step {outcome.best_step}"] if outcome.stopped_early else []
    steps = f"{counted(outcome.steps, 'step')} in {outcome.seconds:.1f} s"
    return ", ".join([steps, *shown, *counts, *stopped])
