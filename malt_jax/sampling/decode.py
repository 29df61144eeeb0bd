"""The decode program: one typed state, one pure step, and a loop of steps between two host visits.

Every row decodes one completion. When it ends, the row takes the next queued completion before the
next step, on the device and without the host, which fills the queue between two chunks of steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from malt_jax.models.attention import LayerAttention
from malt_jax.models.decoder import Decoder
from malt_jax.models.lora import Adapter, for_rows
from malt_jax.models.sharding import constrain
from malt_jax.sampling.attention import Extent, group_rows
from malt_jax.sampling.attention_choice import AttentionChoice
from malt_jax.sampling.cache import (
    Cache,
    append,
    constrain_caches,
    local_entries,
    partitions,
    per_shard,
)
from malt_jax.sampling.filters import Filters, draw
from malt_jax.sampling.prefill import Weights
from malt_jax.sampling.thoughts import Budget, Thoughts, advance, forced_token

IDLE = -1
"""The completion of a row that decodes nothing."""


class Rows(NamedTuple):
    """What each row decodes and how far it has come; the host owns it between two chunks.

    Queued completions have the same form, with axes `[shards, W]` in place of `[R]`: a queue per
    shard, which IDLE ends. A row that takes a completion copies these values.
    """

    completion: Int[Any, "R"]  # its number in the run, or IDLE
    entry: Int[Any, "R"]  # the prefix cache entry that holds its prompt
    prefix: Int[Any, "R"]  # tokens of the prompt in the entry: all but the last
    token: Int[Any, "R"]  # the next input: the prompt's last token, then what was drawn
    length: Int[Any, "R"]  # tokens drawn so far, which are also those in the suffix cache
    key: UInt32[Any, "R 2"]
    thoughts: Thoughts | None = None  # of a call whose thoughts have a budget
    policy: Int[Any, "R"] | None = None  # of a call with several policies


class ParamArrays(NamedTuple):
    """`SamplingParams` on the device; with several policies, arrays over them."""

    filters: Filters  # scalars: the same for every row
    max_new_tokens: Int[Any, ""]
    end_ids: Int[Any, "E"]  # padded with -1
    thought: Budget | None = None

    def of(self, policy: Int[Array, "R"] | None) -> ParamArrays:
        """Each row's, or scalars where there is one policy."""
        return self if policy is None else jax.tree.map(lambda x: x[policy], self)


class DecodeInputs(NamedTuple):
    """What a chunk of steps only reads."""

    prefix: list[Cache]
    queue: Rows
    params: ParamArrays
    idle_limit: Int[Any, ""]  # the chunk ends early when so many rows are idle


class ChunkOutput(NamedTuple):
    """What a chunk drew, per step and row."""

    completion: Int[Array, "steps R"]  # what the row decoded, or IDLE
    token: Int[Array, "steps R"]
    logprob: Float[Array, "steps R"]
    steps: Int[Array, ""]  # steps taken; later elements mean nothing
    dequeued: Int[Array, "shards"]  # completions that rows have taken from each shard's queue
    not_finite: Bool[Array, ""]  # the logits of a busy row had a NaN or an infinity


class DecodeState(NamedTuple):
    """What a decode step changes: the carry of the loop."""

    suffix: list[Cache]
    rows: Rows
    output: ChunkOutput
    cursor: Int[Any, ""]  # the position of the suffix caches' ring that this step writes


class DecodeProgram(NamedTuple):
    """What a decode program is compiled for."""

    graph: nnx.GraphDef
    chunk_steps: int  # steps of a chunk, at most
    siblings: int  # rows that may read one prefix cache entry at a time, with queued ones
    attention: AttentionChoice


def decode(
    program: DecodeProgram,
    weights: Weights,
    inputs: DecodeInputs,
    suffix: list[Cache],
    rows: Rows,
    cursor: Int[Array, ""],
) -> tuple[list[Cache], Rows, ChunkOutput, Int[Array, ""]]:
    """Decodes a chunk of steps; returns the new suffix caches, rows, output and cursor."""
    decoder = nnx.merge(program.graph, weights.params)
    rows, dequeued = refill(rows, inputs.queue, jnp.zeros(len(inputs.queue.token), jnp.int32))
    shape = (program.chunk_steps, len(rows.token))
    output = ChunkOutput(
        completion=jnp.full(shape, IDLE, jnp.int32),
        token=jnp.zeros(shape, jnp.int32),
        logprob=jnp.zeros(shape, jnp.float32),
        steps=jnp.int32(0),
        dequeued=dequeued,
        not_finite=jnp.bool_(False),
    )

    def unfinished(state: DecodeState) -> Bool[Array, ""]:
        idle = jnp.sum(state.rows.completion == IDLE, dtype=jnp.int32)
        return (state.output.steps < program.chunk_steps) & (idle < inputs.idle_limit)

    step = partial(decode_step, program, decoder, weights.adapter, inputs)
    state = jax.lax.while_loop(unfinished, step, DecodeState(suffix, rows, output, cursor))
    # The host reads all but the caches, in every process.
    small = jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), state[1:])
    return constrain_caches(state.suffix), *small


def decode_step(
    program: DecodeProgram,
    decoder: Decoder,
    adapter: Adapter | None,
    inputs: DecodeInputs,
    state: DecodeState,
) -> DecodeState:
    """One decode step: draws one token per row and refills idle rows."""
    suffix, rows, output, cursor = state
    params = inputs.params.of(rows.policy)
    busy = rows.completion != IDLE

    # 1. Forward pass: every row's input token, whose keys and values join its suffix cache. Idle
    #    rows compute too, since shapes are fixed; nothing reads what they compute.
    entries = inputs.prefix[0].size
    extent = Extent(jnp.where(busy, rows.entry, entries), rows.prefix, rows.length, cursor)
    hidden, suffix, _ = decoder.hidden(
        rows.token[:, None],
        (rows.prefix + rows.length)[:, None],
        partial(_attend, program, extent),
        list(zip(inputs.prefix, suffix, strict=True)),
        for_rows(adapter, rows.policy),
    )

    # 2. Draw the next token of each row, with its own key and the number of tokens drawn so far.
    filters = jax.tree.map(lambda x: jnp.broadcast_to(x, rows.token.shape), params.filters)
    forced, thoughts = None, rows.thoughts
    each = jax.vmap if rows.policy is not None else lambda function: function
    if params.thought is not None and thoughts is not None:
        forced = each(forced_token)(params.thought, thoughts, rows.length)
    with jax.named_scope("draw"):
        drawn = draw(decoder.logit_blocks(hidden[:, 0]), rows.key, rows.length, filters, forced)
    if params.thought is not None and thoughts is not None and forced is not None:
        thoughts = each(advance)(params.thought, thoughts, drawn.token, forced)

    # 3. A completion ends with an end token or at its longest. (The host looks for stop texts.)
    ended = jnp.any(drawn.token[:, None] == jnp.atleast_2d(params.end_ids), axis=-1)
    finished = ~busy | ended | (rows.length + 1 >= params.max_new_tokens)

    # 4. The drawn token becomes the next input, rows of finished completions become idle, and idle
    #    rows take what is queued. So a row is never idle for a step while its queue holds anything.
    moved = rows._replace(
        completion=jnp.where(finished, IDLE, rows.completion),
        token=drawn.token,
        length=jnp.where(finished, 0, rows.length + 1),
        thoughts=thoughts,
    )
    moved, dequeued = refill(moved, inputs.queue, output.dequeued)

    # 5. Record what was drawn, under the completions that the rows had when the step began.
    at = output.steps
    output = ChunkOutput(
        completion=output.completion.at[at].set(rows.completion),
        token=output.token.at[at].set(drawn.token),
        logprob=output.logprob.at[at].set(drawn.logprob),
        steps=at + 1,
        dequeued=dequeued,
        not_finite=output.not_finite | jnp.any(drawn.not_finite & busy),
    )
    return DecodeState(suffix, moved, output, (cursor + 1) % suffix[0].capacity)


def _attend(program: DecodeProgram, extent: Extent, q, k, v, caches, layer: LayerAttention):
    """One layer's attention, an `Attend` of the decoder: each shard with its own rows."""
    # Queries are split as their key heads are.
    qkv_axes = partitions(k, "batch", None, "kv_heads")
    cache_axes = partitions(caches, "batch", "kv_heads")
    # Of what is particular to the layer, only the sinks have a head axis.
    layer_axes = partitions(layer.sinks, "kv_heads")
    inputs = (partitions(extent, "batch"), qkv_axes, qkv_axes, qkv_axes, layer_axes, *cache_axes)
    attend = partial(_attend_on_shard, program, layer)
    run = per_shard(attend, inputs, (qkv_axes, cache_axes[1]))
    with jax.named_scope("attention"):  # names that `planning.traffic` reads
        return run(extent, q, k, v, layer.sinks, *caches)


def _attend_on_shard(program, layer, extent: Extent, q, k, v, sinks, prefix: Cache, suffix: Cache):
    """One layer's decode attention on one shard, after appending the new keys and values."""
    layer = layer._replace(sinks=sinks)
    entries = prefix.size
    with jax.named_scope("append"):
        suffix = append(suffix, k, v, extent.cursor)
    extent = extent._replace(entry=local_entries(extent.entry, entries))
    groups = group_rows(extent.entry, entries, program.siblings)
    return program.attention.decode(q, prefix, suffix, groups, extent, layer), suffix


def refill(
    rows: Rows, queue: Rows, dequeued: Int[Array, "shards"]
) -> tuple[Rows, Int[Array, "shards"]]:
    """Idle rows take what is in their shard's queue, after the first `dequeued` that were taken."""
    shards, depth = queue.completion.shape
    idle = (rows.completion == IDLE).reshape(shards, -1)
    # An idle row's rank in its shard plus what was already dequeued is the place of the queue that
    # the row takes. An IDLE place leaves the row idle.
    wanted_place = dequeued[:, None] + jnp.cumsum(idle, axis=1, dtype=jnp.int32) - 1
    begins = idle & (wanted_place < depth)
    place = (jnp.arange(shards, dtype=jnp.int32)[:, None], jnp.minimum(wanted_place, depth - 1))

    def begin(row: Array, queue: Array) -> Array:
        new = queue[place].reshape(row.shape)
        return jnp.where(begins.reshape(-1, *[1] * (row.ndim - 1)), new, row)

    begun = jax.tree.map(begin, rows, queue)
    fresh = begins & (begun.completion != IDLE).reshape(shards, -1)
    return begun, dequeued + jnp.sum(fresh, axis=1, dtype=jnp.int32)
