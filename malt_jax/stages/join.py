"""Join: slices of one search, made apart with `search.shard`, become one run's search.

A slice is a run directory of its own. What they hold is what one run would have searched: keys
come from the seed and a node's path, so a tree does not depend on where it was grown.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.config.run import from_dict
from malt_jax.errors import UserError
from malt_jax.sampling.stats import Stats
from malt_jax.stages.names import search_stage
from malt_jax.stages.session import Session
from malt_jax.storage import manifest, mirror
from malt_jax.storage.atomic import temporary
from malt_jax.storage.journal import Journal
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir, differences
from malt_jax.storage.writers import first

MAY_DIFFER = CANNOT_CHANGE_RESULTS | {
    *("search.shard", "data", "train", "eval", "export", "ablations", "rounds", "sharing"),
}
"""Fields in which a slice may differ from the run it joins: what no tree depends on."""
ROUND = 0
"""Slices search the first round. A later one draws with adapters that only the joined run has."""


@dataclass(frozen=True)
class Slice:
    """A finished slice: the `index`-th of `count` ranges of the questions."""

    place: str
    """As it was given."""
    run: RunDir
    index: int
    count: int

    @property
    def units(self) -> list[Path]:
        return manifest.sealed_units(self.run, search_stage(ROUND))

    @property
    def trees(self) -> list[Path]:
        return [path for path in self.units if path.suffix == ".jsonl"]


def join(session: Session, places: Sequence[str]) -> None:
    """Copies the slices' trees into this run, in the order of their ranges, and seals its search.

    Raises UserError, by name, for a slice that is not finished or damaged, has another config,
    other inputs or other weights, or comes twice; for one that is missing; and for trees that are
    not those of this run's questions.
    """
    if session.config.search.shard != "1/1":
        raise UserError(
            f"search.shard: found {session.config.search.shard}, allowed: 1/1 where slices are "
            "joined; leave it out."
        )
    stage = search_stage(ROUND)
    with session.journal(stage, inputs=True) as journal:
        if journal.done:
            return
        fetched = temporary(session.run.path / "slices")
        try:
            first(lambda: _take(session, journal, places, fetched))
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
    session.progress.note(f"{stage}: joined {len(places)} slices")


def _take(session: Session, journal: Journal, places: Sequence[str], fetched: Path) -> None:
    """Copies the files that this run's search consists of from the slices."""
    slices = in_order([_open(session, place, fetched / str(at)) for at, place in enumerate(places)])
    for one in slices:
        manifest.verify(one.run, one.units)
    _check_weights(session, slices)
    _check_questions(session, slices)
    for path in (path for one in slices for path in one.trees):
        journal.write_bytes(session.run.trees(ROUND) / path.name, path.read_bytes())
    journal.record_cost(**_cost(slices))


def in_order(slices: Iterable[Slice]) -> list[Slice]:
    """The slices by their ranges, each of which must be there exactly once."""
    ordered = sorted(slices, key=lambda one: one.index)
    one_of = ordered[0]
    for one in ordered:
        if one.count != one_of.count:
            raise UserError(
                f"--join: {one.place} is a slice of {one.count} and {one_of.place} of "
                f"{one_of.count}; give the slices of one division."
            )
    times = Counter(one.index for one in ordered)
    twice = [one for one in ordered if times[one.index] > 1]
    if twice:
        named = ", ".join(f"{one.index}/{one.count} in {one.place}" for one in twice)
        raise UserError(f"--join: a slice comes more than once: {named}; give each one once.")
    missing = [index for index in range(1, one_of.count + 1) if index not in times]
    if missing:
        named = ", ".join(f"{index}/{one_of.count}" for index in missing)
        raise UserError(f"--join: missing: slice {named}; give its run directory too.")
    return ordered


def _open(session: Session, place: str, fetched: Path) -> Slice:
    """The slice in a run directory, or in the mirror of one, which is first `fetched`."""
    if "://" in place:
        mirror.pull(place, fetched)
    run = RunDir.existing(fetched if "://" in place else place)
    found = differences(run.config, session.run.config, MAY_DIFFER)
    if found:
        raise UserError(
            f"--join: {place} was searched with another config: {'; '.join(found)}. Give the "
            "config of its search, or search it again."
        )
    here, there = (manifest.load(one)["inputs"] for one in (session.run, run))
    changed = [path for path in here.keys() & there if here[path] != there[path]]
    if changed:
        raise UserError(
            f"--join: {place} has read other contents of {', '.join(sorted(changed))}; search "
            "it again with the file that is there now."
        )
    shard = from_dict(run.config).search.shard
    if not manifest.stage_done(run, search_stage(ROUND)):
        raise UserError(
            f"--join: {place} (slice {shard}) has not finished its search; run `malt search` with "
            "its config again first."
        )
    index, count = map(int, shard.split("/"))
    return Slice(place, run, index, count)


def _check_weights(session: Session, slices: Sequence[Slice]) -> None:
    """All slices drew from the same weights, and those are this run's from now on."""
    models = [manifest.load(one.run).get("model") or {} for one in slices]
    known = manifest.load(session.run).get("model") or models[0]
    for one, model in zip(slices, models, strict=True):
        if "fingerprint" not in model or model["fingerprint"] != known["fingerprint"]:
            raise UserError(
                f"--join: {one.place} was searched with other weights than {slices[0].place} or "
                "this run (their SHA-256 differs); join what one model has searched."
            )
    manifest.amend(session.run, model=known)


def _check_questions(session: Session, slices: Sequence[Slice]) -> None:
    """The trees are those of this run's questions, one each and in their order."""
    wanted = [question.id for question in session.train_questions]
    found = [
        (record["question_id"], one.place)
        for one in slices
        for path in one.trees
        for record in read_lines(path)
    ]
    nothing = "nothing", slices[-1].place
    pairs = zip_longest(wanted, found, fillvalue=None)
    for want, (got, place) in ((want or "nothing", got or nothing) for want, got in pairs):
        if want != got:
            raise UserError(
                f"--join: {place}: expected the tree of {want}, found that of {got}; the slices "
                "were not cut from this run's questions."
            )


def _cost(slices: Sequence[Slice]) -> dict[str, Any]:
    """What the slices cost together: sums, but for memory, of which it is the largest."""
    name = f"{search_stage(ROUND).replace('/', '-')}.json"
    costs = [json.loads(Path(one.run.path, "cost", name).read_text()) for one in slices]
    stats = Stats(**{f.name: sum(cost[f.name] for cost in costs) for f in fields(Stats)})
    stats.cache_bytes = max(cost["cache_bytes"] for cost in costs)
    return {**stats.as_dict(), "peak_bytes": max(cost["peak_bytes"] for cost in costs)}
