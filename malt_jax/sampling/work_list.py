"""Which blocks of the caches a decode step has to read, as the list that the TPU kernel follows.

A block is BLOCK consecutive tokens of all key heads of one prefix cache entry, or of one row's
ring, and it is read by PARTS, of which only those with a token that some row may see. A step reads
the parts in this list and nothing else of the caches, so the list also counts the step's bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from malt_jax.sampling.attention import Extent, GroupIndex

BLOCK = 128
"""Tokens of a block: as many as a vector register has lanes, since a score is one lane's."""
PARTS = 4
"""Parts of a block. One has 32 tokens, the smallest slice of an int8 array in a TPU's memory."""
PART = BLOCK // PARTS

# An item is one word, to save scalar memory: source | parts, one bit each | block.
BLOCK_BITS = 12
SOURCE_SHIFT = BLOCK_BITS + PARTS
MOST_BLOCKS, MOST_SOURCES = 1 << BLOCK_BITS, 1 << (31 - SOURCE_SHIFT)


class WorkList(NamedTuple):
    """Items in the order of the entries: first an entry's own blocks, then those of its rows.

    A source is an entry or a row in one of its places: entry `p` has the sources from
    `p * (1 + s)`, itself and then its `s` places.
    """

    starts: Int[Array, "P+1"]  # each entry's first item; the last element is the number of items
    items: Int[Array, "N"]
    source: Int[Array, "P*(1+s)"]  # the row of a place, R if it is empty, or -1 - p for entry p


def work_list(
    groups: GroupIndex, extent: Extent, capacity: int, ring: int, window: int | None
) -> WorkList:
    """The blocks that hold what `extent` lets the rows read."""
    rows = extent.prefix.shape[0]
    entries, siblings = groups.row.shape

    # 1. The parts [low, high] of each source that are read. A ring's positions are counted down
    #    from the cursor and may be negative here, where they wrap around.
    full = groups.row < rows
    prompt = jnp.where(full, jnp.take(extent.prefix, groups.row, mode="clip"), 0)
    drawn = jnp.where(full, jnp.take(extent.suffix, groups.row, mode="clip"), 0)
    longest = jnp.max(prompt, axis=1)
    oldest, own = jnp.zeros_like(longest), drawn
    if window is not None:
        first = jnp.where(full, prompt + drawn - window + 1, jnp.iinfo(jnp.int32).max)
        oldest, own = jnp.clip(jnp.min(first, axis=1), 0), jnp.minimum(drawn, window - 1)
        # No token of the prompt is near enough: the range is empty.
        oldest = jnp.where(oldest < longest, oldest, capacity)
    ring_low = (extent.cursor - own) // PART
    low = jnp.concatenate([(oldest // PART)[:, None], ring_low], axis=1)
    ring_high = jnp.broadcast_to(extent.cursor // PART, drawn.shape)
    high = jnp.concatenate([((longest - 1) // PART)[:, None], ring_high], axis=1)

    # 2. How many blocks each source has. Where a ring is read around its end, the first and the
    #    last of them may be one block, which counts once.
    ring_blocks = ring // BLOCK
    blocks = jnp.asarray([capacity // BLOCK, *[ring_blocks] * siblings], jnp.int32)
    count = jnp.clip(high // PARTS - low // PARTS + 1, 0, blocks[None])
    count = jnp.where(jnp.pad(full, ((0, 0), (1, 0)), constant_values=True), count, 0).reshape(-1)
    ends = jnp.cumsum(count, dtype=jnp.int32)

    # 3. One item for each block, from the highest down. A part is read if it is in range, or in
    #    range one turn of the ring earlier.
    most = entries * (capacity // BLOCK) + min(rows, entries * siblings) * ring_blocks
    item = jnp.arange(most, dtype=jnp.int32)
    at = jnp.searchsorted(ends, item, side="right", method="compare_all").astype(jnp.int32)
    at = jnp.minimum(at, len(count) - 1)
    of_ring = at % (1 + siblings) > 0
    low, high = low.reshape(-1)[at], high.reshape(-1)[at]
    block = high // PARTS - (item - (ends - count)[at])
    part = block[:, None] * PARTS + jnp.arange(PARTS, dtype=jnp.int32)[None]
    read = (part >= low[:, None]) & (part <= high[:, None])
    read |= of_ring[:, None] & (part - ring // PART >= low[:, None])
    bits = jnp.sum(jnp.where(read, 1 << jnp.arange(PARTS, dtype=jnp.int32)[None], 0), axis=1)
    block = jnp.where(of_ring, block % ring_blocks, jnp.clip(block, 0, capacity // BLOCK - 1))
    items = (at << SOURCE_SHIFT) | (bits.astype(jnp.int32) << BLOCK_BITS) | block
    entry = jnp.arange(entries, dtype=jnp.int32)[:, None]
    return WorkList(
        starts=jnp.pad(ends[siblings :: 1 + siblings], (1, 0)),
        items=items,
        source=jnp.concatenate([-1 - entry, groups.row], axis=1).reshape(-1),
    )


def tokens_read(work: WorkList) -> Int[Array, ""]:
    """Tokens whose keys and values are read in one layer."""
    listed = jnp.arange(len(work.items)) < work.starts[-1]
    parts = (work.items[:, None] >> BLOCK_BITS + jnp.arange(PARTS)[None]) & 1
    return PART * jnp.sum(jnp.where(listed[:, None], parts, 0))
