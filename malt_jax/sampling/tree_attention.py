"""Attention of one decode step as a Pallas TPU kernel that reads only what the rows may see.

The grid goes through the prefix cache entries. At an entry, the kernel follows the work list: it
copies the entry's blocks from the device's memory, each once for all rows that read it, and then
each row's own blocks of its ring, always a few blocks ahead of those it computes with. The scores
never leave the chip: one softmax per row goes over all of its blocks, online (Milakov and
Gimelshein, arXiv 1805.02867), in float32.

The two halves of the grid share nothing, so on chips with two cores each core takes one. Queries
and results are copied row by row, since an entry's rows may be anywhere.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from malt_jax.models.attention import LayerAttention
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling.attention import Extent, GroupIndex
from malt_jax.sampling.cache import JoinedKV
from malt_jax.sampling.tree_kernel import BUFFERS, LANES, SUBLANES, Case, Scalars, Scratch, kernel
from malt_jax.sampling.work_list import BLOCK, MOST_BLOCKS, MOST_SOURCES, work_list

CORES = 2
"""Halves of the grid; a chip with one core takes one after the other."""
SCRATCH = 16 << 20
"""Bytes of on-chip memory for the state of an entry's rows, which bounds how many it may have."""
VMEM = 48 << 20
"""On-chip memory that the compiler may use; every chip that it was compiled for has 64 MiB."""


def siblings_limit(spec: ModelSpec, dtype: Any) -> int:
    """Rows that may read one entry: as many as have room on the chip, with all heads on one."""
    lines = -(-spec.heads // spec.kv_heads // SUBLANES) * SUBLANES
    width = -(-spec.head_dim // LANES) * LANES
    # Queries and results twice, padded to 16 lines where the dtype has two bytes.
    buffers = 4 * max(lines, 16) * width * jnp.dtype(dtype).itemsize
    state = 4 * lines * (2 * width + 2 * LANES)
    return max(1, SCRATCH // (spec.kv_heads * (buffers + state)))


def pallas_decode_attention(
    q: Float[Array, "R 1 H h"],
    prefix: JoinedKV,
    suffix: JoinedKV,
    groups: GroupIndex,
    extent: Extent,
    layer: LayerAttention,
    *,
    interpret: bool = False,
) -> Float[Array, "R 1 H h"]:
    """A `DecodeAttention`; capacities are multiples of BLOCK. `interpret`: without a TPU."""
    window = layer.window
    assert window is None or isinstance(window, int), "the sampler's layers are not stacked"
    rows, _, heads, head_dim = q.shape
    kv_heads, capacity, ring = prefix.kv.shape[1], prefix.capacity, suffix.capacity
    assert capacity % BLOCK == ring % BLOCK == 0 and capacity // BLOCK < MOST_BLOCKS
    # An even number of entries, so that both halves have as many; the last may have no row.
    odd = -len(groups.row) % CORES
    groups = groups._replace(row=jnp.pad(groups.row, ((0, odd), (0, 0)), constant_values=rows))
    entries, siblings = groups.row.shape
    assert entries * (1 + siblings) <= MOST_SOURCES
    case = Case(
        rows, entries // CORES, siblings, heads // kv_heads, head_dim, ring,
        window, layer.softcap,
    )  # fmt: skip

    of_places = lambda x: jnp.take(x, groups.row, mode="clip")  # noqa: E731
    work = work_list(groups, extent, capacity, ring, window)
    prompt = jnp.max(jnp.where(groups.row < rows, of_places(extent.prefix), 0), axis=1)
    drawn, position = of_places(extent.suffix), of_places(extent.prefix + extent.suffix)
    scalars = Scalars(
        *work, prompt, drawn.reshape(-1), position.reshape(-1), extent.cursor.reshape(1)
    )

    q = q.reshape(rows, kv_heads, case.group, head_dim)
    if case.joined:
        # Against a row of key and value, zeros in the value's place give the key's product. The
        # mix then has the values' part in the upper half.
        q = jnp.concatenate([q, jnp.zeros_like(q)], axis=-1)
    width = q.shape[-1]
    any_memory, whole = pl.BlockSpec(memory_space=pl.ANY), pl.BlockSpec(memory_space=pltpu.VMEM)
    sinks = _sink_lines(case, layer.sinks, kv_heads)
    operands = (sinks, q, prefix, suffix)
    specs = (whole if x is sinks else any_memory for x in jax.tree.leaves(operands))
    inputs = jax.tree.unflatten(jax.tree.structure(operands), specs)
    out = pl.pallas_call(
        partial(kernel, case, len(scalars)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(CORES, case.entries),
            in_specs=inputs,
            out_specs=any_memory,
            scratch_shapes=_scratch(case, kv_heads, width, q.dtype, prefix),
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        # An idle row keeps its query: finite numbers, which nothing reads.
        input_output_aliases={len(scalars) + (sinks is not None): 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        interpret=interpret,
        name="tree_attention",
    )(*scalars, *operands)
    return out[..., width - head_dim :].reshape(rows, 1, heads, head_dim)


def _sink_lines(case: Case, sinks: Array | None, kv_heads: int) -> Array | None:
    """The sinks of a row's lines, the same in all lanes."""
    if sinks is None:
        return None
    sinks = sinks.astype(jnp.float32).reshape(kv_heads, case.group, 1)
    sinks = jnp.pad(sinks, ((0, 0), (0, case.lines - case.group), (0, 0)))
    return jnp.broadcast_to(sinks, (*sinks.shape[:2], LANES))


def _scratch(case: Case, kv_heads: int, width: int, dtype: Any, cache: JoinedKV) -> Scratch:
    lines, sems = case.siblings * case.lines, pltpu.SemaphoreType.DMA
    rows = pltpu.VMEM((2, case.siblings, kv_heads, case.group, width), dtype)
    state = lambda width: pltpu.VMEM((kv_heads, lines, width), jnp.float32)  # noqa: E731
    return Scratch(
        blocks=jax.tree.map(
            lambda x: pltpu.VMEM((BUFFERS, kv_heads, BLOCK, *x.shape[3:]), x.dtype), cache
        ),
        block_sems=sems((BUFFERS,)),
        queries=rows,
        query_sems=sems((2,)),
        results=rows,
        result_sems=sems((2,)),
        q=state(width),
        last=pltpu.VMEM((lines, LANES), jnp.int32),
        top=state(LANES),
        total=state(LANES),
        mixed=state(width),
    )
