"""The body of the TPU kernel of decode attention: what is done for one prefix cache entry.

`tree_attention` calls it for every entry and says what comes in. Blocks, queries and results are
copied by the kernel itself, so that they are on their way while others are computed with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from malt_jax.models.attention import MASKED
from malt_jax.sampling.work_list import (
    BLOCK,
    BLOCK_BITS,
    MOST_BLOCKS,
    PART,
    PARTS,
    SOURCE_SHIFT,
)

BUFFERS = 4
"""Blocks in flight: one that is computed with, the others on their way."""
LANES, SUBLANES = 128, 8
"""A vector register: lines of as many numbers."""


def query_width(head_dim: int) -> int:
    """Numbers of a head's query: a key's, or a key's and a value's if they do not fill registers.

    In the second case a key and its value are multiplied as one row.
    """
    return 2 * head_dim if head_dim % LANES else head_dim


class Case(NamedTuple):
    """What the kernel is compiled for."""

    rows: int
    entries: int  # of one half of the grid
    siblings: int
    group: int  # query heads per key head
    head_dim: int
    ring: int
    window: int | None
    softcap: float | None

    @property
    def lines(self) -> int:
        """Lines of a score matrix that a row takes: its query heads, in whole registers."""
        return -(-self.group // SUBLANES) * SUBLANES

    @property
    def joined(self) -> bool:
        """Whether a key and its value are multiplied as one row."""
        return query_width(self.head_dim) != self.head_dim


class Scalars(NamedTuple):
    """Numbers that say what is read; in scalar memory."""

    starts: Any  # of the work list
    items: Any
    source: Any
    prompt: Any  # per entry: tokens that its rows read of it
    drawn: Any  # per place: tokens that its row reads of its ring, beside the cursor's
    position: Any  # per place: the position of its row's query
    cursor: Any


class Scratch(NamedTuple):
    """On-chip memory."""

    blocks: Any  # BUFFERS blocks of the caches
    block_sems: Any
    queries: Any  # rows of this entry and of the next
    query_sems: Any
    results: Any  # rows of this entry and of the last
    result_sems: Any
    q: Any  # [K, lines, W]; float32, because a row's lines may begin within a register of 16 bits
    last: Any  # [lines, LANES]: the position of each line's query
    top: Any  # [K, lines, LANES]: the largest score so far, the same in all lanes
    total: Any  # [K, lines, LANES]: the sum of exp(score - top)
    mixed: Any  # [K, lines, W]: the sum of exp(score - top) * value


def kernel(case: Case, count: int, *refs: Any) -> None:
    """One entry: its rows' queries, its blocks, and their results."""
    s = Scalars(*refs[:count])
    sinks, q, prefix, suffix, out, *scratch = refs[count:]
    at = Scratch(*scratch)
    core, step = pl.program_id(0), pl.program_id(1)
    entry = core * case.entries + step
    first, after, end = s.starts[entry], s.starts[entry + 1], s.starts[(core + 1) * case.entries]
    here, there = lax.rem(step, 2), lax.rem(step + 1, 2)
    fetch = partial(_each_row, case, s, partial(_query_copy, q, at))
    give = partial(_each_row, case, s, partial(_result_copy, out, at))
    copy = partial(_each_part, s, prefix, suffix, at)

    # 1. A half of the grid begins with its first blocks and its first rows on their way.
    @pl.when(step == 0)
    def _() -> None:
        # Parts that are not copied keep what was there, which must be finite.
        at.blocks.kv[...] = jnp.zeros(at.blocks.kv.shape, at.blocks.kv.dtype)
        at.q[...] = jnp.zeros(at.q.shape, jnp.float32)
        _loop(first, jnp.minimum(first + BUFFERS - 1, end), partial(copy, do=_start))
        fetch(entry, here, _start)

    pl.when(step + 1 < case.entries)(partial(fetch, entry + 1, there, _start))
    fetch(entry, here, _wait)
    _begin(case, s, sinks, at, entry, here)

    # 2. Each block: wait for it, send for the one that comes BUFFERS - 1 later, compute.
    def one(item: Array) -> None:
        copy(item, do=_wait)
        ahead = item + BUFFERS - 1
        pl.when(ahead < end)(partial(copy, ahead, do=_start))
        place = (s.items[item] >> SOURCE_SHIFT) - entry * (1 + case.siblings) - 1
        token = (s.items[item] & (MOST_BLOCKS - 1)) * BLOCK
        pl.when(place < 0)(partial(_prefix_block, case, s, at, entry, item, token))
        pl.when(place >= 0)(partial(_ring_block, case, s, at, entry, item, token, place))

    _loop(first, after, one)

    # 3. The results leave while the next entry is computed, from one of two buffers.
    pl.when(step >= 2)(partial(give, entry - 2, here, _wait))
    _loop(0, case.siblings, partial(_finish, case, at, here))
    give(entry, here, _start)

    @pl.when(step == case.entries - 1)
    def _() -> None:
        pl.when(step >= 1)(partial(give, entry - 1, there, _wait))
        give(entry, here, _wait)


def _loop(first: Any, after: Any, body: Callable[[Array], None]) -> None:
    lax.fori_loop(first, after, lambda i, _: body(i), None)


def _start(copy: Any) -> None:
    copy.start()


def _wait(copy: Any) -> None:
    copy.wait()


def _query_copy(q: Any, at: Scratch, row: Any, buffer: Any, j: Any) -> Any:
    return pltpu.make_async_copy(q.at[row], at.queries.at[buffer, j], at.query_sems.at[buffer])


def _result_copy(out: Any, at: Scratch, row: Any, buffer: Any, j: Any) -> Any:
    return pltpu.make_async_copy(at.results.at[buffer, j], out.at[row], at.result_sems.at[buffer])


def _each_row(
    case: Case, s: Scalars, make: Callable, entry: Any, buffer: Any, do: Callable
) -> None:
    """Starts or awaits the copy of each of an entry's rows."""

    def one(j: Array) -> None:
        row = s.source[entry * (1 + case.siblings) + 1 + j]
        pl.when(row < case.rows)(lambda: do(make(row, buffer, j)))

    _loop(0, case.siblings, one)


def _each_part(s: Scalars, prefix: Any, suffix: Any, at: Scratch, item: Any, do: Callable) -> None:
    """Starts or awaits the copies of an item's parts, and of the scales of an int8 cache."""
    word, buffer = s.items[item], lax.rem(item, BUFFERS)
    source, token = s.source[word >> SOURCE_SHIFT], (word & (MOST_BLOCKS - 1)) * BLOCK

    def part_of(cache: Any, index: Any, part: int) -> None:
        tokens = pl.ds(pl.multiple_of(token + part * PART, PART), PART)
        to = at.blocks.kv.at[buffer, :, pl.ds(part * PART, PART)]
        do(pltpu.make_async_copy(cache.kv.at[index, :, tokens], to, at.block_sems.at[buffer]))

    def scales_of(cache: Any, index: Any) -> None:
        tokens = pl.ds(pl.multiple_of(token, BLOCK), BLOCK)
        for scale, to in zip(cache[1:], at.blocks[1:], strict=True):
            scale = scale.at[index, :, tokens]
            do(pltpu.make_async_copy(scale, to.at[buffer], at.block_sems.at[buffer]))

    sources = [(prefix, -1 - source, source < 0), (suffix, source, source >= 0)]
    if do is _wait:
        # To await a copy, its size is enough, so any place of any cache will do.
        sources, token = [(prefix, 0, True)], 0
    for cache, index, chosen in sources:
        for part in range(PARTS):
            wanted = chosen & ((word >> BLOCK_BITS + part) & 1 == 1)
            pl.when(wanted)(partial(part_of, cache, index, part))
        if cache.k_scale is not None:
            pl.when(chosen)(partial(scales_of, cache, index))


def _begin(case: Case, s: Scalars, sinks: Any, at: Scratch, entry: Any, here: Any) -> None:
    """The state of an entry's rows before their first block."""
    at.top[...] = jnp.full(at.top.shape, MASKED, jnp.float32)
    at.total[...] = jnp.zeros(at.total.shape, jnp.float32)
    at.mixed[...] = jnp.zeros(at.mixed.shape, jnp.float32)

    def one(j: Array) -> None:
        lines = _lines(case, j)
        at.q[:, _lines(case, j, case.group)] = at.queries[here, j].astype(jnp.float32)
        if case.window is not None:
            position = s.position[entry * case.siblings + j]
            at.last[lines] = jnp.full((case.lines, LANES), position)
        if sinks is not None:
            # A sink is one more score without a value.
            at.top[:, lines] = sinks[...]
            at.total[:, lines] = jnp.ones(sinks.shape, jnp.float32)

    _loop(0, case.siblings, one)


def _lines(case: Case, j: Any, count: int = 0) -> Any:
    """The lines of place `j`, all or the first `count`."""
    return pl.ds(pl.multiple_of(j * case.lines, SUBLANES), count or case.lines)


def _finish(case: Case, at: Scratch, here: Any, j: Any) -> None:
    """The result of place `j`: its mixed values, divided by the sum of their weights."""
    for h in range(at.top.shape[0]):
        lines = _lines(case, j, case.group)
        # A line that saw nothing belongs to no row.
        total = at.total[h, lines]
        total = _across(jnp.where(total > 0, total, 1.0), at.mixed.shape[-1])
        at.results[here, j, h] = (at.mixed[h, lines] / total).astype(at.results.dtype)


def _prefix_block(case: Case, s: Scalars, at: Scratch, entry: Any, item: Any, token: Any) -> None:
    """A block of the entry, for all of its rows."""
    shape = at.last.shape
    position = token + lax.broadcasted_iota(jnp.int32, shape, 1)
    mask = position < s.prompt[entry]
    if case.window is not None:
        mask &= at.last[...] - position < case.window
    _update(case, at, lax.rem(item, BUFFERS), slice(None), mask)


def _ring_block(
    case: Case, s: Scalars, at: Scratch, entry: Any, item: Any, token: Any, place: Any
) -> None:
    """A block of one row's ring."""
    position = token + lax.broadcasted_iota(jnp.int32, (case.lines, BLOCK), 1)
    age = s.cursor[0] - position
    age = jnp.where(age < 0, age + case.ring, age)
    mask = age <= s.drawn[entry * case.siblings + place]
    if case.window is not None:
        mask &= age < case.window
    _update(case, at, lax.rem(item, BUFFERS), _lines(case, place), mask)


def _update(case: Case, at: Scratch, buffer: Any, lines: Any, mask: Array) -> None:
    """One step of the online softmax of some lines, over one block."""
    dtype = at.queries.dtype
    contract = lambda a, b, axis: lax.dot_general(  # noqa: E731
        a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )
    for h in range(at.top.shape[0]):
        kv = at.blocks.kv[buffer, h].astype(dtype)
        k, v = (kv, kv) if case.joined else (kv[:, : case.head_dim], kv[:, case.head_dim :])
        scores = contract(at.q[h, lines].astype(dtype), k, 1)
        if at.blocks.k_scale is not None:
            scores = scores * at.blocks.k_scale[buffer, pl.ds(h, 1)]
        if case.softcap is not None:
            scores = case.softcap * jnp.tanh(scores / case.softcap)
        scores = jnp.where(mask, scores, MASKED)
        old = at.top[h, lines]
        top = jnp.maximum(old, jnp.max(scores, axis=-1, keepdims=True))
        weights, less = jnp.exp(scores - top), jnp.exp(old - top)
        at.top[h, lines] = top
        at.total[h, lines] = less * at.total[h, lines] + jnp.sum(weights, axis=-1, keepdims=True)
        if at.blocks.v_scale is not None:
            weights = weights * at.blocks.v_scale[buffer, pl.ds(h, 1)]
        mixed = contract(weights.astype(dtype), v, 0)
        at.mixed[h, lines] = at.mixed[h, lines] * _across(less, mixed.shape[-1]) + mixed


def _across(x: Array, width: int) -> Array:
    """What is the same in all lanes, in `width` of them."""
    return jnp.tile(x, (1, -(-width // LANES)))[:, :width]
