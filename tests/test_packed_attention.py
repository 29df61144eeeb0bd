"""Blockwise attention of packed rows is the plain softmax over the same mask, and its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from closeness import assert_near
from malt_jax.models import packed_attention as blockwise
from malt_jax.models.attention import MASKED
from malt_jax.models.packed_attention import Packing, packed_attention

TIME, HEADS, GROUPS, WIDTH = 150, 4, 2, 8


def plain(q, k, v, mask, softcap):
    """Every score at once; what XLA's own differentiation makes of it is the reference."""
    k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
    scores = jnp.einsum("bthc,bshc->bhts", q, k)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1)
    return jnp.einsum("bhts,bshc->bthc", weights, v)


def rows(seed: int) -> tuple[np.ndarray, ...]:
    """Two rows of prompts with two branches each and padding at the end, laid out one by one."""
    rng = np.random.default_rng(seed)
    positions, segments, branches = np.zeros((3, 2, TIME), np.int32)
    for row in range(2):
        at, segment = 0, 1
        while at < TIME - 45:
            prompt = int(rng.integers(3, 20))
            for branch, length in ((0, prompt), (1, 7), (2, int(rng.integers(1, 15)))):
                place = slice(at, at + length)
                positions[row, place] = np.arange(length) + (prompt if branch else 0)
                segments[row, place], branches[row, place] = segment, branch
                at += length
            segment += 1
    return positions, segments, branches


def visible(positions, segments, branches, window) -> np.ndarray:
    """The mask, one pair of tokens at a time."""
    mask = np.zeros((2, TIME, TIME), bool)
    for b, t, s in np.ndindex(mask.shape):
        lineage = branches[b, s] in (0, branches[b, t])
        near = window is None or positions[b, t] - positions[b, s] < window
        mask[b, t, s] = s <= t and segments[b, s] == segments[b, t] > 0 and lineage and near
    return mask


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("block", [128, 32, 1000])
def test_equals_the_plain_softmax(monkeypatch, block, window, softcap):
    monkeypatch.setattr(blockwise, "BLOCK", block)
    layout = rows(0)
    mask = visible(*layout, window)
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (HEADS, GROUPS, GROUPS, HEADS)
    q, k, v, wanted = (
        jax.random.normal(key, (2, TIME, n, WIDTH)) for key, n in zip(keys, sizes, strict=True)
    )
    real = (layout[1] > 0)[:, :, None, None]  # what padding sees is nobody's business

    def loss(attend, q, k, v):
        return jnp.sum(jnp.where(real, attend(q, k, v), 0.0) * wanted)

    def ours(q, k, v):
        packing = Packing(*map(jnp.asarray, layout), window)
        return packed_attention(q, k, v, packing, softcap)

    def reference(q, k, v):
        return plain(q, k, v, jnp.asarray(mask), softcap)

    assert_near(np.where(real, ours(q, k, v), 0), np.where(real, reference(q, k, v), 0), 2e-6)
    found, expected = (
        jax.jit(jax.grad(loss, argnums=(1, 2, 3)), static_argnums=0)(f, q, k, v)
        for f in (ours, reference)
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert_near(mine, theirs, 5e-6)


def test_padding_gives_numbers_and_takes_no_gradient():
    layout = np.zeros((3, 1, 5), np.int32)
    q = jax.random.normal(jax.random.key(0), (1, 5, HEADS, WIDTH))

    def ours(q):
        return packed_attention(q, q[:, :, :GROUPS], q[:, :, :GROUPS], Packing(*layout, None), None)

    assert np.isfinite(ours(q)).all()
    assert np.isfinite(jax.grad(lambda q: jnp.sum(ours(q)[:, 0]))(q)).all()
