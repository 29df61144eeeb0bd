"""The sampler's timer: which time counts as the device waiting for the host."""

from __future__ import annotations

import weakref
from dataclasses import replace

from malt_jax.sampling.stats import Activity, Stats, Timer

HOST, OVERLAPPED, DEVICE = Activity.HOST, Activity.OVERLAPPED, Activity.DEVICE


def run(*events) -> Stats:
    """Enters phases at given times; an event is (time, stream, phase[, device_idle])."""
    stats, now = Stats(), [0.0]
    timer = Timer(stats, lambda: now[0])
    for now[0], stream, *rest in events:
        timer.enter(stream, *rest)
    return stats


def test_the_device_waits_while_its_only_stream_is_in_its_host_phase():
    stats = run(
        (0, "a", HOST), (1, "a", OVERLAPPED), (3, "a", DEVICE), (7, "a", HOST), (9, "a", None)
    )
    assert (stats.seconds, stats.host_wait_seconds) == (9, 3)


def test_an_overlapped_phase_counts_whole_if_the_device_ran_out_of_work_in_it():
    stats = run((0, "a", OVERLAPPED), (1, "a", OVERLAPPED), (3, "a", DEVICE, True), (4, "a", None))
    assert (stats.seconds, stats.host_wait_seconds) == (4, 2)


def test_an_idle_device_in_the_host_phase_adds_nothing_for_the_chunk_before():
    stats = run(
        (0, "a", OVERLAPPED), (1, "a", DEVICE), (9, "a", HOST), (10, "a", OVERLAPPED, True),
        (11, "a", DEVICE), (20, "a", None),
    )  # fmt: skip
    assert (stats.seconds, stats.host_wait_seconds) == (20, 1)


def test_two_overlapped_phases_without_work_count_once_each():
    stats = run(
        (0, "a", OVERLAPPED), (2, "a", OVERLAPPED, True), (3, "a", DEVICE, True), (4, "a", None)
    )
    assert (stats.seconds, stats.host_wait_seconds) == (4, 3)


def test_the_device_waits_only_while_all_streams_are_in_their_host_phase():
    stats = run(
        (0, "a", HOST), (0, "b", OVERLAPPED), (2, "a", OVERLAPPED), (3, "b", HOST),
        (4, "a", HOST), (5, "a", None), (6, "b", None),
    )  # fmt: skip
    assert (stats.seconds, stats.host_wait_seconds) == (6, 2)


def test_a_stream_that_has_ended_is_forgotten():
    """Streams are known by their schedulers, which hold everything that was drawn."""
    timer = Timer(Stats())
    stream = type("Scheduler", (), {})()
    gone = weakref.ref(stream)
    for phase in (HOST, OVERLAPPED, DEVICE, HOST, None):
        timer.enter(stream, phase)
    del stream
    assert gone() is None


def test_stats_since_a_copy_count_what_was_added_after_it():
    stats = Stats(tokens_generated=100, row_steps=120, row_steps_useful=100, cache_bytes=7)
    before = replace(stats)
    stats.add(tokens_generated=30, row_steps=40, row_steps_useful=30)
    added = stats.since(before)
    assert (added.tokens_generated, added.padding_waste, added.cache_bytes) == (30, 0.25, 7)
