"""Before each training phase: the sampler's log-probabilities against the trainer's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from malt_jax.data.role_data import STAR, policy_name
from malt_jax.progress import counted
from malt_jax.stages.names import search_stage, train_stage
from malt_jax.stages.policies import WeightLoader, latest
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import read_lines
from malt_jax.training.mismatch import Mismatch, measure_mismatch, mismatch_warning
from malt_jax.tree.node import Node, Tree

COMPLETIONS = 32
"""Nodes per role on which the mismatch is measured."""
SHARDS = 4
"""Files of the search that they are taken from, at most."""
TREES = 8
"""Trees of each file that they are taken from, at most."""


def check_mismatch(
    session: Session,
    round: int,
    policy: str,
    phase: str,
    roles: Sequence[str],
    load: WeightLoader,
    known: dict[tuple[str, ...], Mismatch],
) -> None:
    """Measures, logs and shows the mismatch on nodes of these roles, and warns if it is large.

    The roles must have been searched with one policy's weights, which `load` is asked for, also
    where an earlier phase of the round has left others. `known`: what was measured in this round,
    so that phases that learn from the same nodes share one measurement.
    """
    # The STaR single agent learns from what the first role wrote.
    first = session.pipeline.roles[0].name
    roles = [first if role == STAR else role for role in roles]
    model = session.bases.model_of(roles[0])
    if tuple(roles) not in known:
        nodes = sealed_sample(session, round, roles)
        if not nodes:
            return
        searched_by = latest(session, round - 1, policy_name(roles[0], session.config.sharing))
        known[tuple(roles)] = measure_mismatch(model, load(searched_by), nodes, session.mesh)
    found = known[tuple(roles)]
    session.metrics.series("mismatch", round, policy, phase).log(0, vars(found))
    say = session.progress.note
    where = train_stage(round, policy, phase)
    say(
        f"{where}: log-probabilities of sampler and trainer differ by {found.mean:.2g} per token "
        f"on average, {found.largest:.2g} at most ({counted(found.completions, 'completion')}, "
        f"{counted(found.tokens, 'token')})"
    )
    if warning := mismatch_warning(found, model):
        say(f"{where}: {warning}")


def sealed_sample(session: Session, round: int, roles: Collection[str]) -> list[Node]:
    """Up to COMPLETIONS nodes of each role, spread evenly over files and trees of the search.

    Only nodes whose tokens have log-probabilities, which imported ones may lack.
    """
    units = manifest.sealed_units(session.run, search_stage(round))
    shards = _spread([path for path in units if path.suffix == ".jsonl"], SHARDS)
    manifest.verify(session.run, shards)
    records = [record for path in shards for record in _spread([*read_lines(path)], TREES)]
    nodes = [node for record in records for node in Tree.from_record(record).nodes]
    chosen: list[Node] = []
    for role in dict.fromkeys(roles):
        own = [node for node in nodes if node.role == role and _has_logprobs(node)]
        chosen += _spread(own, COMPLETIONS)
    return chosen


def _has_logprobs(node: Node) -> bool:
    return 0 < len(node.token_ids) == len(node.logprobs)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items at equal distances, or all if there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
