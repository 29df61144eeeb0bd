"""The signals of a round's trees: computed from the sealed search, kept beside it, read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from malt_jax.credit.divergence import divergence
from malt_jax.credit.influence import Score, Sequences, influence
from malt_jax.credit.signals import Signals, node_signals
from malt_jax.credit.verdict import verdict_readers
from malt_jax.progress import counted
from malt_jax.stages.bases import ByRole
from malt_jax.stages.names import label_stage
from malt_jax.stages.policies import policies_after
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir
from malt_jax.tree.node import Forest


def signals_file(run: RunDir, round: int) -> Path:
    """One line per node: its id, its role and its signals."""
    return run.trees(round).parent / "credit" / "signals.jsonl"


def measure(session: Session, forest: Forest, round: int, stage: str, *, scored: bool) -> Signals:
    """The signals of a valued forest that the policies after a round (-1: the base) have sampled.

    `scored`: also what costs scoring passes, which are influence, and after the first training the
    divergence from the policies before it. `stage` names it for people.
    """
    config, measured = session.config, {}
    if scored:
        of = session.bases.model_of
        tokenizer = session.bases.each(lambda role: of(role).tokenizer)
        context = session.bases.each(lambda role: of(role).spec.context)
        score = _scorer(session, policies_after(session.trained, round), f"{stage}: influence")
        measured["influence"] = influence(forest, session.pipeline, tokenizer, context, score)
        if round >= 0:
            start = policies_after(session.trained, -1)
            score = _scorer(session, start, f"{stage}: divergence from the start")
            measured["divergence"] = divergence(forest, score)
    return node_signals(
        forest,
        threshold=config.search.threshold,
        readers=verdict_readers(config.pipeline.roles),
        measured=measured,
    )


def records(forest: Forest, signals: Signals) -> Iterator[dict[str, Any]]:
    """The lines of the signals' file."""
    for tree in forest.trees:
        for node in tree.nodes:
            where = {"node_id": node.id, "role": node.role, "question_id": tree.question_id}
            yield {**where, "value": node.value, **signals[node.id]}


def known_influence(session: Session, round: int) -> dict[str, float]:
    """The influence that labelling has measured, by node id; empty if it has not."""
    path = signals_file(session.run, round)
    if path not in manifest.sealed_units(session.run, label_stage(round)):
        return {}
    manifest.verify(session.run, [path])
    rows = read_lines(path)
    return {row["node_id"]: row["influence"] for row in rows if "influence" in row}


def _scorer(session: Session, weights: ByRole[Any], what: str) -> Score:
    """Scores completions of a role under these weights."""
    from malt_jax.training.scores import completion_logprobs

    def score(role: str, sequences: Sequences) -> np.ndarray:
        count = counted(len(sequences), "completion")
        session.progress.note(f"{what}, {role}: {count} to score")
        model = session.bases.model_of(role)
        return completion_logprobs(model, weights[role], sequences, mesh=session.mesh)

    return score
