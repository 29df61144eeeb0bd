"""What the rows of a decode program typically read, and the bytes that the kernel reads for them.

A program's bytes do not depend on how full its caches are where XLA computes attention, but the
kernel's do. Prompts here fill SHARES of their entries, evenly spread. Completions end evenly
between nothing and the suffix caches' capacity, and a row is seen at a random moment of its time:
long ones are seen more often, and on average a third of the capacity is filled.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from malt_jax.models.spec import ModelSpec
from malt_jax.sampling.attention import Extent, group_rows
from malt_jax.sampling.memory import CacheShape
from malt_jax.sampling.work_list import BLOCK, tokens_read, work_list

SHARES = (0.3, 0.88)


def typical_extent(shape: CacheShape) -> Extent:
    """All rows of one shard busy, spread evenly over its entries."""
    row, entry = np.arange(shape.rows), np.arange(shape.entries)
    low, high = SHARES
    prompts = shape.prefix_tokens * (low + (high - low) * (entry + 0.5) / shape.entries)
    # The length of a completion that is met at a random step has a density that rises with it. The
    # golden ratio's multiples spread the moments evenly, whatever the lengths.
    length = shape.new_tokens * np.sqrt((row + 0.5) / shape.rows)
    drawn = length * ((row * 0.618) % 1.0)
    of_row = row % shape.entries
    as_array = lambda x: jnp.asarray(np.asarray(x).astype(np.int32))  # noqa: E731
    return Extent(
        as_array(of_row),
        as_array(prompts[of_row]),
        as_array(drawn),
        jnp.int32(shape.new_tokens // 2),
    )


def valid_tokens(spec: ModelSpec, shape: CacheShape) -> list[int]:
    """Per layer, the tokens that some row may see: an entry's once, and each row's own."""
    extent = typical_extent(shape)
    prompt, drawn = np.asarray(extent.prefix), np.asarray(extent.suffix)
    counts = []
    for layer in range(spec.num_layers):
        window = spec.window(layer) or 1 << 30
        seen = np.maximum(0, prompt - np.maximum(0, prompt + drawn - window + 1))
        of_entries = np.zeros(shape.entries, np.int64)
        np.maximum.at(of_entries, np.asarray(extent.entry), seen)
        counts.append(int(of_entries.sum() + np.minimum(drawn + 1, window).sum()))
    return counts


def kernel_bytes(
    spec: ModelSpec, shape: CacheShape, dtype: Any, cache_dtype: Any, kv_heads: int
) -> int:
    """Bytes that the kernel moves in one step on one device, by its work lists.

    `shape`: of one shard; `kv_heads`: of one device. Beside the caches, the queries are read and
    the results written, which are of the activations' `dtype`.
    """
    # Here, because importing Pallas takes a noticeable part of a second.
    from malt_jax.sampling.tree_kernel import query_width

    extent = typical_extent(shape)
    groups = group_rows(extent.entry, shape.entries, shape.siblings)
    token = 2 * spec.head_dim * jnp.dtype(cache_dtype).itemsize
    numbers = shape.rows * spec.heads // spec.kv_heads * query_width(spec.head_dim)
    queries_and_results = 2 * numbers * jnp.dtype(dtype).itemsize
    lists: dict[int | None, int] = {}
    total = 0
    for layer in range(spec.num_layers):
        window = spec.window(layer)
        if window not in lists:
            work = work_list(groups, extent, shape.prefix_tokens, shape.new_tokens, window)
            scales = 8 * BLOCK * int(work.starts[-1]) if cache_dtype == jnp.int8 else 0
            lists[window] = int(tokens_read(work)) * token + scales
        total += kv_heads * (lists[window] + queries_and_results)
    return total
