"""Join: the slices of one search become the search of this run.

Sampling keys come from the seed and a node's path in its tree, so a tree does not depend on the
machine that grew it, and the joined search equals that of one run. With `search.spare` its nodes
do, but how many siblings there are depends on the blocks, which begin anew in each slice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

from malt_jax.errors import RunStopped, UserError
from malt_jax.sampling.stats import Stats
from malt_jax.stages.bases import base_hashes, facts_of_bases
from malt_jax.stages.session import Session
from malt_jax.stages.slices import (
    COST,
    ROUND,
    STAGE,
    Slice,
    check_files,
    check_trees,
    lacking,
    open_slice,
    read_cost,
)
from malt_jax.storage import manifest
from malt_jax.storage.atomic import scratch
from malt_jax.storage.journal import Journal
from malt_jax.storage.signals import first_signal, signal_received
from malt_jax.storage.writers import on_writer

LOOK_SECONDS = 20.0
"""Between two looks at slices that are waited for."""
MOST_NAMED = 10
"""Missing slices that a message lists; a stranger's slice may be one of any number."""


def join(session: Session, places: Sequence[str], minutes: float = 0.0) -> None:
    """Copies the trees of all slices into this run, in the order of their ranges, and seals them.

    Waits for slices that are not finished for at most so many `minutes`. Raises UserError for a
    slice that is unfinished, damaged, malformed or given twice, or that has another config, other
    inputs or other weights; for a slice that is missing; for trees that do not belong to this
    run's questions; and if a search has begun that was not joined.
    """
    if session.config.search.shard != "1/1":
        raise UserError(
            f"search.shard: found {session.config.search.shard}, allowed: 1/1 where slices are "
            "joined; leave it out."
        )
    with session.journal(STAGE, inputs=True) as journal:
        # Shards of slices are named after their range. A single slice of 1/1 has the names of a
        # search of one's own, whose trees it also has. Imported trees have no cost.
        units = manifest.sealed_units(session.run, STAGE)
        named = [unit.suffix == ".json" or "of" in unit.name for unit in units]
        joined = session.run.path / COST in units and (len(places) == 1 or all(named))
        session.refuse_own_search(STAGE, journal.done and joined, "--join")
        if journal.done:
            return
        if minutes:
            on_writer(lambda: wait_for(session, places, minutes), patient=True)
        on_writer(lambda: _take(session, journal, places), patient=True)
    session.progress.note(f"{STAGE}: joined {len(places)} slices")


def wait_for(session: Session, places: Sequence[str], minutes: float) -> None:
    """Returns once all slices are finished; raises UserError that names those that are not."""
    until, said, wanted = time.monotonic() + 60 * minutes, "", list(places)
    while True:
        # A slice that is finished stays so, and is not looked at again.
        states = {place: state for place in wanted if (state := lacking(place))}
        wanted = list(states)
        if not wanted:
            return
        named = ", ".join(
            f"{place} ({state})" for place, state in islice(states.items(), MOST_NAMED)
        )
        more = f" and {len(wanted) - MOST_NAMED} more" if len(wanted) > MOST_NAMED else ""
        if time.monotonic() > until:
            raise UserError(
                f"--join: not finished within {minutes:g} minutes: {named}{more}; search them, or "
                "give the same command again to wait longer."
            )
        if named != said:
            session.progress.note(f"{STAGE}: waiting for {len(wanted)} slices: {named}{more}")
            said = named
        time.sleep(min(LOOK_SECONDS, max(0.0, until - time.monotonic()) + 0.01))
        if signal_received():
            raise RunStopped(first_signal(), "stopped while waiting for slices; nothing is lost")


def _take(session: Session, journal: Journal, places: Sequence[str]) -> None:
    """Copies the files of the slices into this run; mirrored slices are fetched first."""
    with scratch(session.run.path / "slices") as fetched:
        # All slices are opened and checked before the first tree is copied.
        slices = in_order(
            open_slice(session, place, fetched / str(at)) for at, place in enumerate(places)
        )
        for one in slices:
            check_files(one)
        _check_weights(session, slices)
        check_trees(session, slices)
        for path in (path for one in slices for path in one.shards):
            journal.write_bytes(session.run.trees(ROUND) / path.name, path.read_bytes())
        journal.record_cost(**_cost(slices))


def in_order(slices: Iterable[Slice]) -> list[Slice]:
    """The slices in the order of their ranges, each of which must be given exactly once."""
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
    # Without repeats, the count alone tells how many are missing. They are listed lazily, because a
    # stranger's slice may be one of any number.
    if rest := one_of.count - len(ordered):
        absent = (index for index in range(1, one_of.count + 1) if index not in times)
        named = ", ".join(f"{index}/{one_of.count}" for index in islice(absent, MOST_NAMED))
        more = f" and {rest - MOST_NAMED} more" if rest > MOST_NAMED else ""
        raise UserError(f"--join: missing: slice {named}{more}; give its run directory too.")
    return ordered


def _check_weights(session: Session, slices: Sequence[Slice]) -> None:
    """Refuses slices that sampled with different weights; theirs become those of this run."""
    known = facts_of_bases(session.run)
    for one in slices:
        found = facts_of_bases(one.run)
        ours, theirs = base_hashes(known), base_hashes(found)
        if "model" not in found or any(ours.get(name, x) != x for name, x in theirs.items()):
            raise UserError(
                f"--join: {one.place} was searched with other weights than {slices[0].place} or "
                "this run (their SHA-256 differs); join what one model has searched."
            )
        dtypes = {facts["model"].get("dtype") for facts in (known, found) if facts.get("model")}
        if len(dtypes - {None}) > 1:
            session.progress.note(
                f"WARNING: {one.place} was searched in another dtype than the slices before it or "
                f"this run ({', '.join(sorted(map(str, dtypes - {None})))}); their roundings differ"
            )
        # A run that was stopped early knows no model yet, or not those of all roles.
        bases = {**found.get("bases", {}), **known.get("bases", {})}
        known = {**found, **known, **({"bases": bases} if bases else {})}
    manifest.amend(session.run, **known)


def _cost(slices: Sequence[Slice]) -> dict[str, Any]:
    """What the slices cost together: sums, except for memory, of which it is the largest."""
    costs = [read_cost(one) for one in slices]
    names = [field.name for field in fields(Stats)]
    stats = Stats(**{name: sum(cost[name] for cost in costs) for name in names})  # type: ignore[arg-type]
    stats.cache_bytes = int(max(cost["cache_bytes"] for cost in costs))
    return {**stats.as_dict(), "peak_bytes": max(cost["peak_bytes"] for cost in costs)}
