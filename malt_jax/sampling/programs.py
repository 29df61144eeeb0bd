"""The device programs of the sampler: prompts grow by some tokens; all rows decode."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from malt_jax.models.lora import Adapter
from malt_jax.models.sharding import constrain
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling.cache import (
    KV,
    append,
    copy_slots,
    decode_attention,
    empty,
    extend_attention,
    take_seats,
)
from malt_jax.sampling.filters import draw
from malt_jax.sampling.memory import Shapes
from malt_jax.sampling.shards import layouts, on_own_slots

IDLE = -1
"""The completion of a row that decodes nothing."""


class Rows(NamedTuple):
    """Where each row stands. Small, and the host's own copy between two chunks.

    Also the form of completions that wait for a row, one queue `[parts, Q]` for each part of the
    mesh; IDLE ends a queue.
    """

    completion: Int[Array, "R"]
    """Which of the run's completions the row decodes, or IDLE."""
    slot: Int[Array, "R"]
    """The slot that holds its prompt."""
    prompt: Int[Array, "R"]
    """Tokens of the prompt in the slot: all but the last."""
    token: Int[Array, "R"]
    """The next input: the prompt's last token, then what was drawn."""
    length: Int[Array, "R"]
    """Tokens drawn so far, which is also the suffix's length in the cache."""
    key: UInt32[Array, "R 2"]


class How(NamedTuple):
    """How a run's tokens are drawn and when its completions end."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    limit: Int[Array, ""]
    """Longest completion in tokens."""
    end_ids: Int[Array, "E"]
    """Tokens that end a completion; -1 is none."""


class Log(NamedTuple):
    """What a chunk drew: one entry a step and row, IDLE where the row had nothing to do."""

    completion: Int[Array, "steps R"]
    token: Int[Array, "steps R"]
    logprob: Float[Array, "steps R"]
    steps: Int[Array, ""]
    """Steps made; later entries mean nothing."""
    taken: Int[Array, "parts"]
    """Completions that left each queue."""
    bad: Bool[Array, ""]
    """A busy row's logits had a NaN or an infinity."""


def caches(spec: ModelSpec, shapes: Shapes, dtype: Any) -> tuple[list[KV], list[KV]]:
    """Of zeros: the slots' prefixes and the rows' suffixes."""
    prefix = empty(spec, shapes.slots, shapes.places, dtype)
    suffix = empty(spec, shapes.rows, shapes.ring, dtype)
    return laid_out(prefix), laid_out(suffix)


def extend(
    graph: nnx.GraphDef,
    params: Any,
    adapter: Adapter | None,
    prefix: list[KV],
    target: Int[Array, "B"],
    tokens: Int[Array, "B T"],
    start: Int[Array, "B"],
    length: Int[Array, "B"],
) -> list[KV]:
    """Slot `target` goes on after its first `start` tokens with `length` new ones.

    Several lanes may grow one slot. A lane whose target is S is ignored. On a mesh the lanes are
    split as the slots are, each among those of its slot's part.
    """
    decoder = nnx.merge(graph, params)
    positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]

    def attend(q, k, v, state, layer):
        def own(mine, q, k, v, state, target, start, length):
            return extend_attention(
                q, k, v, state, mine(target), start, length, layer.window, layer.softcap
            )

        # Queries are split as their key heads are.
        heads, slots = layouts(k, "slots", None, "kv_heads"), layouts(state, "slots", "kv_heads")
        inputs = (heads, heads, heads, slots, *layouts((target, start, length), "slots"))
        run = on_own_slots(own, state.v.shape[0], inputs, (heads, slots))
        return run(q, k, v, state, target, start, length)

    _, prefix = decoder.hidden(tokens, positions, attend, prefix, adapter)
    return laid_out(prefix)


def fork(prefix: list[KV], source: Int[Array, "C"], target: Int[Array, "C"]) -> list[KV]:
    """Slot `target` holds what slot `source` does; targets of S, at the end, are ignored.

    On a mesh the pairs are split as the slots are, each among those of its two slots' part.
    """

    def own(mine, prefix, source, target):
        return copy_slots(prefix, mine(source), mine(target))

    caches, slots = layouts(prefix, "slots", "kv_heads"), layouts((source, target), "slots")
    run = on_own_slots(own, prefix[0].v.shape[0], (caches, *slots), caches)
    return laid_out(run(prefix, source, target))


def laid_out(caches: Any) -> Any:
    """On a mesh: slots and rows over the data axes, key heads over the tensor axis."""
    return jax.tree.map(lambda x: constrain(x, "slots", "kv_heads", *[None] * (x.ndim - 2)), caches)


def shrink(
    prefix: list[KV] | None, suffix: list[KV], slots: Int[Array, "S"], rows: Int[Array, "R"]
) -> tuple[list[KV] | None, list[KV]]:
    """The caches of some slots, unless all stay, and of some rows."""
    prefix, suffix = (
        jax.tree.map(lambda x, kept=kept: jnp.take(x, kept, axis=0, mode="clip"), caches)
        for caches, kept in ((prefix, slots), (suffix, rows))
    )
    return laid_out(prefix), laid_out(suffix)


def decode(
    graph: nnx.GraphDef,
    chunk: int,
    width: int,
    params: Any,
    adapter: Adapter | None,
    prefix: list[KV],
    suffix: list[KV],
    rows: Rows,
    waiting: Rows,
    how: How,
    clock: Int[Array, ""],
    enough: Int[Array, ""],
) -> tuple[list[KV], Rows, Log, Int[Array, ""]]:
    """Decode all rows for up to `chunk` steps, or until `enough` of them have nothing to do.

    A row that finishes goes on with its part's next waiting completion in the very next step. At
    most `width` rows may decode from one slot at a time, waiting ones included.
    """
    decoder = nnx.merge(graph, params)
    count = rows.token.shape[0]
    everywhere = lambda x: jnp.broadcast_to(x, count)  # noqa: E731

    def going(state) -> Array:
        _, rows, log, _ = state
        idle = jnp.sum(rows.completion == IDLE, dtype=jnp.int32)
        return (log.steps < chunk) & (idle < enough)

    def step(state):
        suffix, rows, log, clock = state
        hidden, suffix = _hidden(decoder, adapter, prefix, suffix, rows, clock, width)
        drawn = draw(
            decoder.logits(hidden),
            rows.key,
            rows.length,
            everywhere(how.temperature),
            everywhere(how.top_k),
            everywhere(how.top_p),
        )
        busy = rows.completion != IDLE
        ended = jnp.any(drawn.token[:, None] == how.end_ids[None], axis=-1)
        finished = ~busy | ended | (rows.length + 1 >= how.limit)
        moved = Rows(
            completion=jnp.where(finished, IDLE, rows.completion),
            slot=rows.slot,
            prompt=rows.prompt,
            token=drawn.token,
            length=jnp.where(finished, 0, rows.length + 1),
            key=rows.key,
        )
        moved, taken = _begin(moved, waiting, log.taken)
        log = Log(
            completion=log.completion.at[log.steps].set(rows.completion),
            token=log.token.at[log.steps].set(drawn.token),
            logprob=log.logprob.at[log.steps].set(drawn.logprob),
            steps=log.steps + 1,
            taken=taken,
            bad=log.bad | jnp.any(drawn.bad & busy),
        )
        return suffix, moved, log, (clock + 1) % suffix[0].k.shape[3]

    rows, taken = _begin(rows, waiting, jnp.zeros(waiting.token.shape[0], jnp.int32))
    log = Log(
        completion=jnp.full((chunk, count), IDLE, jnp.int32),
        token=jnp.zeros((chunk, count), jnp.int32),
        logprob=jnp.zeros((chunk, count), jnp.float32),
        steps=jnp.int32(0),
        taken=taken,
        bad=jnp.bool_(False),
    )
    suffix, rows, log, clock = jax.lax.while_loop(going, step, (suffix, rows, log, clock))
    # The host reads all but the caches, in every process.
    rows, log, clock = jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), (rows, log, clock))
    return laid_out(suffix), rows, log, clock


def _hidden(decoder, adapter, prefix, suffix, rows, clock, width):
    """The rows' final hidden states `[R, D]` and the suffixes with this step's tokens."""
    slots = prefix[0].k.shape[0]
    slot = jnp.where(rows.completion == IDLE, slots, rows.slot)

    def attend(q, k, v, state, layer):
        def own(mine, q, k, v, prefix, suffix, slot, prompt, length, clock):
            suffix = append(suffix, k, v, clock)
            seats = take_seats(mine(slot), prefix.k.shape[0], width)
            out = decode_attention(
                q, prefix, suffix, seats, prompt, length, clock, layer.window, layer.softcap
            )
            return out, suffix

        # Queries are split as their key heads are.
        heads = layouts(k, "slots", None, "kv_heads")
        caches = layouts(state, "slots", "kv_heads")
        by_row = (slot, rows.prompt, rows.length)
        inputs = (heads, heads, heads, *caches, *layouts(by_row, "slots"), layouts(clock))
        run = on_own_slots(own, slots, inputs, (heads, caches[1]))
        return run(q, k, v, *state, *by_row, clock)

    hidden, suffix = decoder.hidden(
        rows.token[:, None],
        (rows.prompt + rows.length)[:, None],
        attend,
        list(zip(prefix, suffix, strict=True)),
        adapter,
    )
    return hidden[:, 0], suffix


def _begin(
    rows: Rows, waiting: Rows, taken: Int[Array, "parts"]
) -> tuple[Rows, Int[Array, "parts"]]:
    """Idle rows begin what waits in their part's queue, after the `taken` first of it."""
    parts, depth = waiting.completion.shape
    idle = (rows.completion == IDLE).reshape(parts, -1)
    turn = taken[:, None] + jnp.cumsum(idle, axis=1, dtype=jnp.int32) - 1
    begins = idle & (turn < depth)
    entry = jnp.minimum(turn, depth - 1)

    def pick(row: Array, queue: Array) -> Array:
        new = jax.vmap(lambda queue, entry: queue[entry])(queue, entry)
        new = new.reshape(row.shape)
        return jnp.where(begins.reshape(-1, *[1] * (row.ndim - 1)), new, row)

    begun = jax.tree.map(pick, rows, waiting)
    fresh = begins & (begun.completion != IDLE).reshape(parts, -1)
    return begun, taken + jnp.sum(fresh, axis=1, dtype=jnp.int32)
