"""Prefill: the keys and values of prompts, computed in calls of a few fixed shapes.

A chunk is a few consecutive tokens of one prompt. A call computes a fixed number of chunks, which
may belong to any prompts. Chunks of one prompt can be in one call, since within a layer the keys
and values of each chunk are written before later chunks read them. So there is padding only in a
prompt's last chunk and a batch's last call. A second program copies shared prefixes first.

On a mesh a call's chunks are split as the entries are: each shard computes those of its entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from malt_jax.config.sampler import SamplerConfig
from malt_jax.models.attention import LayerAttention
from malt_jax.models.lora import Adapter, for_rows
from malt_jax.sampling.attention import Chunks, prefill_attention
from malt_jax.sampling.cache import Cache, constrain_caches, partitions, per_shard
from malt_jax.sampling.prefix_cache import Prefill

_T = TypeVar("_T")
_Chunk = tuple[int, int, tuple[int, ...], int]
"""Target, start, tokens and policy."""


class Weights(NamedTuple):
    """What a device program computes with: the model's parameters, and an adapter over them."""

    params: Any
    adapter: Adapter | None


class CopyCall(NamedTuple):
    """Arguments of `cache.copy_entries`; a target equal to the number of entries is padding."""

    source: Int[np.ndarray, "N"]
    target: Int[np.ndarray, "N"]


class PrefillCall(NamedTuple):
    """Arguments of `prefill`."""

    tokens: Int[Any, "B T"]
    chunks: Chunks
    policy: Int[Any, "B"]  # whose adapter a chunk is computed with, where adapters lie side by side


class PrefillShape(NamedTuple):
    """The shapes of prefill calls."""

    tokens: int  # per chunk
    counts: tuple[int, ...]  # chunks that a call may have, rising

    @staticmethod
    def of(chunk: int, call: int, shards: int = 1) -> PrefillShape:
        """Chunks of `chunk` tokens, in calls of `call` tokens per shard, or a quarter of that."""
        most = max(1, call // chunk)
        counts = {shards * max(1, most // 4), shards * most}
        return PrefillShape(min(chunk, call), tuple(sorted(counts)))


def prefill_shape(config: SamplerConfig, platform: str, shards: int) -> PrefillShape:
    """The shapes of prefill calls on a platform."""
    chunk, call = (16, 256) if platform == "cpu" else (128, 4096)
    return PrefillShape.of(config.prefill_lane or chunk, config.prefill_tokens or call, shards)


def copies_per_call(entries: int, shards: int = 1) -> int:
    """Shared prefixes that one call copies."""
    return shards * max(1, entries // shards // 8)


def padding_calls(
    entries: int, shape: PrefillShape, shards: int
) -> Iterator[CopyCall | PrefillCall]:
    """A call of each shape that does nothing, to compile its program with."""
    yield _copy_call(copies_per_call(entries, shards), [], entries)
    for count in shape.counts:
        yield _prefill_call(count, [], shape, entries)


def plan_calls(
    prefills: Sequence[Prefill], entries: int, shape: PrefillShape, shards: int = 1
) -> Iterator[CopyCall | PrefillCall]:
    """The device calls that carry out some prefills, in their order."""
    # A prefill may copy from an entry that another prefill has to write first, so they come in
    # batches, each of which reads only what earlier batches wrote. Within a batch the order is
    # free: all shared prefixes are copied, then all new tokens are computed, both in calls as large
    # as the work fills. The device runs calls in the order in which they are dispatched.
    copies = (copies_per_call(entries, shards),)
    for _, group in groupby(sorted(prefills, key=lambda p: p.batch), key=lambda p: p.batch):
        by_shard: list[list[Prefill]] = [[] for _ in range(shards)]
        for p in group:
            by_shard[p.target * shards // entries].append(p)
        copied = [[p for p in own if p.source != p.target and p.start] for own in by_shard]
        for count, pairs in _dealt(copied, copies):
            yield _copy_call(count, pairs, entries)
        chunks = [list(_chunks(own, shape.tokens)) for own in by_shard]
        for count, placed in _dealt(chunks, shape.counts):
            yield _prefill_call(count, placed, shape, entries)


def _chunks(prefills: Iterable[Prefill], size: int) -> Iterator[_Chunk]:
    """Every chunk, those of one prompt in their order."""
    for p in prefills:
        for first in range(0, len(p.tokens), size):
            yield p.target, p.start + first, p.tokens[first : first + size], p.policy


def _dealt(
    by_shard: list[list[_T]], sizes: Sequence[int]
) -> Iterator[tuple[int, list[tuple[int, _T]]]]:
    """Items dealt to calls of some sizes: (size, items with their places in the call).

    Each shard has an equal range of a call's places. A call has the largest size that some shard
    fills, or else the smallest.
    """
    shards = len(by_shard)
    while any(by_shard):
        filled = [size for size in sizes if size // shards <= max(map(len, by_shard))]
        size = filled[-1] if filled else sizes[0]
        own = size // shards
        placed = [
            (shard * own + i, item)
            for shard, items in enumerate(by_shard)
            for i, item in enumerate(items[:own])
        ]
        yield size, placed
        by_shard = [items[own:] for items in by_shard]


def _copy_call(count: int, pairs: Iterable[tuple[int, Prefill]], entries: int) -> CopyCall:
    call = CopyCall(np.zeros(count, np.int32), np.full(count, entries, np.int32))
    for i, p in pairs:
        call.source[i], call.target[i] = p.source, p.target
    return call


def _prefill_call(
    count: int, placed: Iterable[tuple[int, _Chunk]], shape: PrefillShape, entries: int
) -> PrefillCall:
    target, start, length, policy = (np.full(count, x, np.int32) for x in (entries, 0, 0, 0))
    tokens = np.zeros((count, shape.tokens), np.int32)
    for i, (entry, first, new, number) in placed:
        target[i], start[i], length[i], policy[i] = entry, first, len(new), number
        tokens[i, : len(new)] = new
    return PrefillCall(tokens, Chunks(target, start, length), policy)


def prefill(
    graph: nnx.GraphDef, prefix: list[Cache], weights: Weights, call: PrefillCall
) -> list[Cache]:
    """The device program: extends entries by chunks; returns the prefix cache with them."""
    decoder = nnx.merge(graph, weights.params)
    tokens, chunks, policy = call
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    positions = chunks.start[:, None] + steps[None, :]
    attend = partial(_attend, chunks)
    adapter = for_rows(weights.adapter, policy)
    _, prefix, _ = decoder.hidden(tokens, positions, attend, prefix, adapter)
    return constrain_caches(prefix)


def _attend(chunks: Chunks, q, k, v, prefix: Cache, layer: LayerAttention):
    """One layer's attention, an `Attend` of the decoder: each shard with its own chunks."""
    # Queries are split as their key heads are.
    qkv_axes = partitions(k, "batch", None, "kv_heads")
    cache_axes = partitions(prefix, "batch", "kv_heads")
    chunk_axes, sink_axes = partitions(chunks, "batch"), partitions(layer.sinks, "kv_heads")
    inputs = (qkv_axes, qkv_axes, qkv_axes, cache_axes, chunk_axes, sink_axes)

    def on_shard(q, k, v, prefix, chunks, sinks):
        return prefill_attention(q, k, v, prefix, chunks, layer._replace(sinks=sinks))

    run = per_shard(on_shard, inputs, (qkv_axes, cache_axes))
    return run(q, k, v, prefix, chunks, layer.sinks)
