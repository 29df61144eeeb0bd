"""Train: each role is fine-tuned on its own data, SFT and then DPO (method, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from malt_jax.evaluation.systems import make_systems
from malt_jax.progress import counted
from malt_jax.stages.policies import last_phase, load, trainee, trainees, weights_folder
from malt_jax.stages.session import Session, train_stage
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import read_lines
from malt_jax.training.examples import DpoExample, SftExample
from malt_jax.training.loop import TrainOutcome
from malt_jax.training.phases import train_dpo, train_sft
from malt_jax.tree.policies import STAR


def train(session: Session, round: int) -> None:
    """All trainees of a round, one after the other over the one resident base.

    `adapters`: every role on its own data. `shared`: one trainee on all roles' data, mixed in every
    batch in proportion. Beside them the single agent of the STaR baseline, SFT only, where a system
    to be measured speaks with it. A trainee without data is named and left as it is.
    """
    roles = [role.config for role in session.pipeline.roles]
    for name in trainees(session.config):
        mine = [role for role in roles if trainee(session, role.name) == name]
        sft_roles = [role.name for role in mine if role.train != "none"]
        dpo_roles = [role.name for role in mine if role.train == "sft+dpo"]
        _phase(session, round, name, "sft", sft_roles)
        _phase(session, round, name, "dpo", dpo_roles)
    _phase(session, round, STAR, "sft", [STAR] if _is_measured(session, STAR) else [])


def _is_measured(session: Session, policy: str) -> bool:
    systems = make_systems(session.config.eval, session.pipeline, session.task.templates)
    return any(turn.policy == policy for system in systems for turn in system.turns)


def trained_stage(round: int) -> str:
    """The stage a round's training ends with: once it is done, all of the round's training is."""
    return train_stage(round, STAR, "sft")


def _phase(session: Session, round: int, name: str, phase: str, roles: Sequence[str]) -> None:
    stage = train_stage(round, name, phase)
    if session.done(stage):
        return
    run, config = session.run, session.config
    paths = [run.data(round, role) / f"{phase}.jsonl" for role in roles]
    manifest.verify(run, paths)
    rows = [row for path in paths for row in read_lines(path)]
    if not rows:
        if roles:
            session.progress.note(f"{stage}: no {phase} data, {name} stays as it is")
        session.seal(stage, [])
        return
    begun_from = last_phase(session, round if phase == "dpo" else round - 1, name)
    start = load(session, begun_from)
    if start is None:
        start = session.fresh_weights(name)
    folder = weights_folder(session, round, name, phase)
    series = session.metrics.series("train", round, name, phase)
    session.progress.watch(dict)  # the sampler is at rest

    def on_step(step: int, steps: int, record: dict[str, float]) -> None:
        series.log(step, record)
        shown = {name: record[name] for name in ("loss", "tokens_per_s")}
        session.progress.update(stage, step, steps, **shown)

    count = counted(len(rows), "row")
    session.progress.note(f"{stage}: {count}, from {begun_from}; its first step compiles")
    if phase == "sft":
        outcome = train_sft(
            session.model,
            start,
            [_sft(row) for row in rows],
            config.train.sft,
            folder=folder,
            seed=config.seed,
            dropout=config.train.lora.dropout,
            on_step=on_step,
            mesh=session.mesh,
        )
    else:
        outcome = train_dpo(
            session.model,
            start,
            start,
            [_dpo(row) for row in rows],
            config.train.dpo,
            folder=folder,
            seed=config.seed,
            template="\n".join(role.template for role in session.pipeline.roles),
            on_step=on_step,
            mesh=session.mesh,
        )
    session.progress.note(f"{stage}: {_sentence(outcome)}")
    cost = session.record_cost(
        stage,
        {
            "seconds": outcome.seconds,
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "padding_waste": outcome.padding_waste,
            "peak_bytes": outcome.peak_bytes,
            "counts": outcome.counts,
        },
    )
    session.seal(stage, [folder, cost])


def _sentence(outcome: TrainOutcome) -> str:
    """The last step's numbers, and what happened on the way."""
    last = outcome.log[-1] if outcome.log else {}
    shown = [f"{name} {last[name]:.3f}" for name in ("loss", "accuracy", "margin") if name in last]
    counts = [f"{count} {name}" for name, count in outcome.counts.items() if count]
    stopped = [f"stopped early, best step {outcome.best_step}"] if outcome.stopped_early else []
    steps = f"{counted(outcome.steps, 'step')} in {outcome.seconds:.1f} s"
    return ", ".join([steps, *shown, *counts, *stopped])


def _sft(row: dict[str, Any]) -> SftExample:
    return SftExample(
        tuple(row["prompt_ids"]),
        tuple(row["completion_ids"]),
        row["node_id"],
        role=row["role"],
        group=row["question_id"],
    )


def _dpo(row: dict[str, Any]) -> DpoExample:
    return DpoExample(
        tuple(row["prompt_ids"]),
        tuple(row["chosen_ids"]),
        tuple(row["rejected_ids"]),
        f"{row['chosen_node_id']} > {row['rejected_node_id']}",
        role=row["role"],
        group=row["question_id"],
    )
