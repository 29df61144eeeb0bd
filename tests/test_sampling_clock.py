"""The sampler's clock: whose time counts as the device's waiting for the host."""

from __future__ import annotations

import weakref
from dataclasses import replace

from malt_jax.sampling.clock import BESIDE, DEVICE, HOST, Clock
from malt_jax.sampling.stats import Stats


def run(*events) -> Stats:
    """Enter phases at given times; an event is (time, stream, phase[, ran_out])."""
    stats, now = Stats(), [0.0]
    clock = Clock(stats, lambda: now[0])
    for now[0], stream, *rest in events:
        clock.enter(stream, *rest)
    return stats


def test_the_device_waits_while_its_only_stream_is_at_the_host():
    stats = run((0, "a", HOST), (1, "a", BESIDE), (3, "a", DEVICE), (7, "a", HOST), (9, "a", None))
    assert (stats.seconds, stats.host_wait_seconds) == (9, 3)


def test_work_that_ran_out_counts_from_when_the_device_was_last_given_some():
    stats = run((0, "a", BESIDE), (1, "a", BESIDE), (3, "a", DEVICE, True), (4, "a", None))
    assert (stats.seconds, stats.host_wait_seconds) == (4, 2)


def test_an_idle_device_at_the_host_is_not_counted_from_the_chunk_before():
    stats = run(
        (0, "a", BESIDE), (1, "a", DEVICE), (9, "a", HOST), (10, "a", BESIDE, True),
        (11, "a", DEVICE), (20, "a", None),
    )  # fmt: skip
    assert (stats.seconds, stats.host_wait_seconds) == (20, 1)


def test_time_that_ran_out_counts_once():
    stats = run((0, "a", BESIDE), (2, "a", BESIDE, True), (3, "a", DEVICE, True), (4, "a", None))
    assert (stats.seconds, stats.host_wait_seconds) == (4, 3)


def test_two_streams_wait_only_together_and_count_once():
    stats = run(
        (0, "a", HOST), (0, "b", BESIDE), (2, "a", BESIDE), (3, "b", HOST),
        (4, "a", HOST), (5, "a", None), (6, "b", None),
    )  # fmt: skip
    assert (stats.seconds, stats.host_wait_seconds) == (6, 2)


def test_a_stream_that_has_ended_is_forgotten():
    """Streams are known by their pools, which hold everything that was drawn."""
    clock = Clock(Stats())
    stream = type("Pool", (), {})()
    gone = weakref.ref(stream)
    for phase in (HOST, BESIDE, DEVICE, HOST, None):
        clock.enter(stream, phase)
    del stream
    assert gone() is None


def test_a_stage_counts_what_was_added_since_it_began():
    stats = Stats(tokens_generated=100, row_steps=120, row_steps_useful=100, cache_bytes=7)
    before = replace(stats)
    stats.add(tokens_generated=30, row_steps=40, row_steps_useful=30)
    mine = stats.since(before)
    assert (mine.tokens_generated, mine.padding_waste, mine.cache_bytes) == (30, 0.25, 7)
