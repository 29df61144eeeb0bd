"""Memory that was freed goes back to the system, as far as the C library can tell."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from malt_jax import memory
from malt_jax.memory import release_freed, release_programs

PIECE, PIECES = 96 << 10, 3000
"""Bytes, and how many: pieces too small to be mapped one by one."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_freed_pieces_below_one_still_in_use_are_given_back():
    pieces = [os.urandom(PIECE) for _ in range(PIECES)]
    kept = pieces[PIECES // 50 :: PIECES // 50]  # as in life: something lives in every part
    del pieces
    before = resident()
    release_freed()
    assert before - resident() > PIECE * PIECES / 2
    assert len(kept) > 40


def test_where_nothing_can_be_given_back_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    release_freed()


@pytest.mark.parametrize("spare, kept", [(1 << 40, 1), (0, 0)])
def test_programs_are_dropped_only_where_they_hold_much(monkeypatch, spare, kept):
    """Recompiling costs time, so a small model's programs stay for the next phase."""
    monkeypatch.setattr(memory, "SPARE_MEMORY", spare)
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    release_programs()
    assert double._cache_size() == kept
    assert double(jnp.ones(3)).tolist() == [2, 2, 2]
