"""Join: slices of one search, made apart with `search.shard`, become one run's search.

A slice is a run directory of its own. What they hold is what one run would have searched: keys
come from the seed and a node's path, so a tree does not depend on where it was grown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from malt_jax.config import CANNOT_CHANGE_RESULTS
from malt_jax.errors import UserError
from malt_jax.sampling.stats import Stats
from malt_jax.stages.session import Session, search_stage
from malt_jax.storage import manifest
from malt_jax.storage.atomic import write_bytes
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir, differences

MAY_DIFFER = CANNOT_CHANGE_RESULTS | {
    *("search.shard", "data", "train", "eval", "export", "ablations", "rounds", "sharing"),
}
"""Fields in which a slice may differ from the run it joins: what no tree depends on."""
ROUND = 0
"""Slices search the first round. A later one draws with adapters that only the joined run has."""


@dataclass(frozen=True)
class Slice:
    """A finished slice: the `index`-th of `count` ranges of the questions."""

    run: RunDir
    index: int
    count: int


def join(session: Session, folders: Sequence[str]) -> None:
    """Copies the slices' trees into this run, in the order of their ranges, and seals its search.

    Raises UserError, by name, for a slice that is not finished or damaged, has another config,
    other inputs or other weights, or comes twice; for one that is missing; and for trees that are
    not those of this run's questions.
    """
    stage = search_stage(ROUND)
    if session.done(stage):
        return
    if session.config.search.shard != "1/1":
        raise UserError(
            f"search.shard: found {session.config.search.shard}, allowed: 1/1 where slices are "
            "joined; leave it out."
        )
    session.record_inputs()
    slices = in_order([_open(session, folder) for folder in folders])
    _check_weights(session, slices)
    _check_questions(session, slices)
    copies = []
    for one in slices:
        units = manifest.sealed_units(one.run, stage)
        manifest.verify(one.run, units)
        for path in (path for path in units if path.suffix == ".jsonl"):
            copies.append(session.run.trees(ROUND) / path.name)
            write_bytes(copies[-1], path.read_bytes())
    cost = session.record_cost(stage, _cost(slices))
    manifest.seal(session.run, stage, [*copies, cost])
    session.progress.note(f"{stage}: joined {len(slices)} slices")


def in_order(slices: Iterable[Slice]) -> list[Slice]:
    """The slices by their ranges, each of which must be there exactly once."""
    ordered = sorted(slices, key=lambda one: one.index)
    first = ordered[0]
    for one in ordered:
        if one.count != first.count:
            raise UserError(
                f"--join: {one.run.path} is a slice of {one.count} and {first.run.path} of "
                f"{first.count}; give the slices of one division."
            )
    times = Counter(one.index for one in ordered)
    twice = [one for one in ordered if times[one.index] > 1]
    if twice:
        named = ", ".join(f"{one.index}/{one.count} in {one.run.path}" for one in twice)
        raise UserError(f"--join: a slice comes more than once: {named}; give each one once.")
    missing = [index for index in range(1, first.count + 1) if index not in times]
    if missing:
        named = ", ".join(f"{index}/{first.count}" for index in missing)
        raise UserError(f"--join: missing: slice {named}; give its run directory too.")
    return ordered


def _open(session: Session, folder: str) -> Slice:
    run = RunDir.existing(folder)
    found = differences(session.run.config, run.config, MAY_DIFFER)
    if found:
        raise UserError(
            f"--join: {run.path} was searched with another config than {session.run.path}: "
            f"{'; '.join(found)}. Join what was searched alike."
        )
    here, there = (manifest.load(one)["inputs"] for one in (session.run, run))
    changed = [path for path in here.keys() & there if here[path] != there[path]]
    if changed:
        raise UserError(
            f"--join: {run.path} has read other contents of {', '.join(sorted(changed))}; search "
            "it again with the file that is there now."
        )
    shard = run.config["search"]["shard"]
    if not manifest.stage_done(run, search_stage(ROUND)):
        raise UserError(
            f"--join: {run.path} (slice {shard}) has not finished its search; run `malt search "
            f"--output-dir {folder}` first."
        )
    index, count = map(int, shard.split("/"))
    return Slice(run, index, count)


def _check_weights(session: Session, slices: Sequence[Slice]) -> None:
    """All slices drew from the same weights, and those are this run's from now on."""
    known, knower = manifest.load(session.run).get("model"), session.run
    for one in slices:
        facts = manifest.load(one.run)["model"]
        if known is None:
            known, knower = facts, one.run
        elif known["fingerprint"] != facts["fingerprint"]:
            raise UserError(
                f"--join: {one.run.path} was searched with other weights than {knower.path} (their "
                "SHA-256 differs); join what one model has searched."
            )
    manifest.amend(session.run, model=known)


def _check_questions(session: Session, slices: Sequence[Slice]) -> None:
    """The trees are those of this run's questions, one each and in their order."""
    wanted = (question.id for question in session.train_questions)
    stage = search_stage(ROUND)
    found = (
        (record["question_id"], one)
        for one in slices
        for path in manifest.sealed_units(one.run, stage)
        if path.suffix == ".jsonl"
        for record in read_lines(path)
    )
    for want, pair in zip_longest(wanted, found):
        got, where = (pair[0], pair[1].run.path) if pair else ("the end", slices[-1].run.path)
        if want != got:
            raise UserError(
                f"--join: {where}: expected the tree of {want or 'no further question'}, found "
                f"that of {got}; the slices were not cut from this run's questions."
            )


def _cost(slices: Sequence[Slice]) -> dict[str, Any]:
    """What the slices cost together: sums, but for memory, of which it is the largest."""
    name = f"{search_stage(ROUND).replace('/', '-')}.json"
    costs = [json.loads(Path(one.run.path, "cost", name).read_text()) for one in slices]
    stats = Stats(**{f.name: sum(cost[f.name] for cost in costs) for f in fields(Stats)})
    stats.cache_bytes = max(cost["cache_bytes"] for cost in costs)
    return {**stats.as_dict(), "peak_bytes": max(cost["peak_bytes"] for cost in costs)}
