"""The signals of a round's trees: computed from the sealed search, kept beside it, read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from malt_jax.credit.influence import Sequences, influence
from malt_jax.credit.signals import Signals, node_signals
from malt_jax.credit.verdict import verdict_parsers
from malt_jax.progress import counted
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


def measure(session: Session, forest: Forest, round: int) -> Signals:
    """The signals of a valued forest; influence costs a scoring pass and is asked for by config."""
    config = session.config
    return node_signals(
        forest,
        threshold=config.search.threshold,
        parsers=verdict_parsers(config.pipeline.roles),
        influence=_influence(session, forest, round) if config.data.influence else None,
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


def _influence(session: Session, forest: Forest, round: int) -> dict[str, float]:
    """One pass over the completions, each under the weights that sampled it."""
    from malt_jax.training.scores import completion_logprobs

    model, weights = session.model, policies_after(session, round - 1)

    def score(role: str, sequences: Sequences) -> np.ndarray:
        count = counted(len(sequences), "completion")
        session.progress.note(f"{label_stage(round)}: influence on the {role}, {count} to score")
        return completion_logprobs(model, weights[role], sequences, mesh=session.mesh)

    return influence(forest, session.pipeline, model.tokenizer, model.spec.context, score)
