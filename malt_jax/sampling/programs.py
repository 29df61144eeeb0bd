"""The device programs of the sampler: prompts grow by some tokens; all rows decode."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from malt_jax.models.lora import Adapter
from malt_jax.models.sharding import constrain
from malt_jax.sampling.cache import KV, append, copy_slots, decode_attention, extend_attention
from malt_jax.sampling.filters import draw
from malt_jax.sampling.shards import layouts, on_own_slots

IDLE = -1
"""The sibling number of a row that decodes nothing."""


class Rows(NamedTuple):
    """Where each row stands. Small, and the host's own copy between two chunks."""

    sibling: Int[Array, "S w"]
    """Which completion of its slot's prompt the row decodes, or IDLE."""
    token: Int[Array, "S w"]
    """The next input: the prompt's last token, then what was drawn."""
    length: Int[Array, "S w"]
    """Tokens drawn so far, which is also the suffix's length in the cache."""
    key: UInt32[Array, "S w 2"]


class Slots(NamedTuple):
    """What each slot decodes, and the completions its rows go on to as they finish."""

    prefix: Int[Array, "S"]
    """Tokens in the prefix block: the prompt without its last token."""
    token: Int[Array, "S"]
    """The prompt's last token, the first input of every completion."""
    temperature: Float[Array, "S"]
    top_k: Int[Array, "S"]
    top_p: Float[Array, "S"]
    limit: Int[Array, "S"]
    """Longest completion in tokens."""
    sibling: Int[Array, "S"]
    """Number of the first queued completion; the others follow it."""
    queued: Int[Array, "S"]
    """How many are queued."""
    keys: UInt32[Array, "S A 2"]
    """The queued completions' keys."""


class Log(NamedTuple):
    """What a chunk drew: one entry a step and row, sibling IDLE where the row had nothing to do."""

    sibling: Int[Array, "steps S w"]
    token: Int[Array, "steps S w"]
    logprob: Float[Array, "steps S w"]
    steps: Int[Array, ""]
    """Steps made; later entries mean nothing."""
    bad: Bool[Array, ""]
    """A busy row's logits had a NaN or an infinity."""


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


def laid_out(caches: list[KV]) -> list[KV]:
    """On a mesh: slots and rows over the data axes, key heads over the tensor axis."""
    return jax.tree.map(lambda x: constrain(x, "slots", "kv_heads", *[None] * (x.ndim - 2)), caches)


def shrink(
    prefix: list[KV], suffix: list[KV], slots: Int[Array, "S"], rows: Int[Array, "R"]
) -> tuple[list[KV], list[KV]]:
    """The caches of some of the slots, and of their rows."""
    prefix, suffix = (
        jax.tree.map(lambda x, kept=kept: jnp.take(x, kept, axis=0, mode="clip"), caches)
        for caches, kept in ((prefix, slots), (suffix, rows))
    )
    return laid_out(prefix), laid_out(suffix)


def decode(
    graph: nnx.GraphDef,
    chunk: int,
    params: Any,
    adapter: Adapter | None,
    prefix: list[KV],
    suffix: list[KV],
    rows: Rows,
    slots: Slots,
    end_ids: Int[Array, "E"],
    clock: Int[Array, ""],
    enough: Int[Array, ""],
) -> tuple[list[KV], Rows, Log, Int[Array, ""]]:
    """Decode all rows for up to `chunk` steps, or until `enough` slots have nothing left to do.

    A row that finishes goes on with its slot's next queued completion in the very next step.
    """
    decoder = nnx.merge(graph, params)
    places = prefix[0].k.shape[3]
    log = Log(
        sibling=jnp.full((chunk, *rows.sibling.shape), IDLE, jnp.int32),
        token=jnp.zeros((chunk, *rows.sibling.shape), jnp.int32),
        logprob=jnp.zeros((chunk, *rows.sibling.shape), jnp.float32),
        steps=jnp.int32(0),
        bad=jnp.bool_(False),
    )

    def going(state) -> Array:
        _, rows, _, log, _ = state
        free = jnp.sum(jnp.all(rows.sibling == IDLE, axis=1), dtype=jnp.int32)
        return (log.steps < chunk) & (free < enough)

    def step(state):
        suffix, rows, taken, log, clock = state
        hidden, suffix = _hidden(decoder, adapter, prefix, suffix, rows, slots, clock, places)
        slots_, width = rows.sibling.shape
        each = lambda x: jnp.repeat(x, width)  # noqa: E731
        drawn = draw(
            decoder.logits(hidden),
            rows.key.reshape(-1, 2),
            rows.length.reshape(-1),
            each(slots.temperature),
            each(slots.top_k),
            each(slots.top_p),
        )
        token = drawn.token.reshape(slots_, width)
        busy = rows.sibling != IDLE
        log = Log(
            sibling=log.sibling.at[log.steps].set(rows.sibling),
            token=log.token.at[log.steps].set(token),
            logprob=log.logprob.at[log.steps].set(drawn.logprob.reshape(slots_, width)),
            steps=log.steps + 1,
            bad=log.bad | jnp.any(drawn.bad.reshape(slots_, width) & busy),
        )
        ended = jnp.any(token[:, :, None] == end_ids[None, None, :], axis=-1)
        finished = busy & (ended | (rows.length + 1 >= slots.limit[:, None]))
        rows, taken = _advance(rows, slots, token, finished, taken)
        return suffix, rows, taken, log, (clock + 1) % suffix[0].k.shape[3]

    taken = jnp.zeros(rows.sibling.shape[0], jnp.int32)
    suffix, rows, _, log, clock = jax.lax.while_loop(going, step, (suffix, rows, taken, log, clock))
    # The host reads all but the caches, in every process.
    rows, log, clock = jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), (rows, log, clock))
    return laid_out(suffix), rows, log, clock


def _hidden(decoder, adapter, prefix, suffix, rows, slots, clock, places):
    """The rows' final hidden states `[S * w, D]` and the suffixes with this step's tokens."""
    slots_, width = rows.sibling.shape
    ring = suffix[0].k.shape[3]
    position = slots.prefix[:, None] + rows.length
    place = jnp.arange(places, dtype=jnp.int32)[None, None, :]
    in_prefix = jnp.broadcast_to(place < slots.prefix[:, None, None], (slots_, width, places))
    back = position[:, :, None] - place
    age = (clock - jnp.arange(ring, dtype=jnp.int32)) % ring
    in_suffix = age[None, :] <= rows.length.reshape(-1, 1)

    def attend(q, k, v, state, layer):
        shared, own = state
        own = append(own, k, v, clock)
        prefix_mask, suffix_mask = in_prefix, in_suffix
        if layer.window is not None:
            prefix_mask = prefix_mask & (back < layer.window)
            suffix_mask = suffix_mask & (age < layer.window)[None, :]
        return decode_attention(q, shared, own, prefix_mask, suffix_mask, layer.softcap), own

    hidden, suffix = decoder.hidden(
        rows.token.reshape(-1, 1),
        position.reshape(-1, 1),
        attend,
        list(zip(prefix, suffix, strict=True)),
        adapter,
    )
    return hidden[:, 0], suffix


def _advance(
    rows: Rows,
    slots: Slots,
    token: Int[Array, "S w"],
    finished: Bool[Array, "S w"],
    taken: Int[Array, "S"],
) -> tuple[Rows, Int[Array, "S"]]:
    """Rows after a step: one token longer, or at the start of their slot's next completion."""
    turn = taken[:, None] + jnp.cumsum(finished, axis=1, dtype=jnp.int32) - 1
    follows = finished & (turn < slots.queued[:, None])
    entry = jnp.clip(turn, 0, slots.keys.shape[1] - 1)
    key = jnp.take_along_axis(slots.keys, entry[:, :, None], axis=1)
    sibling = jnp.where(finished, IDLE, rows.sibling)
    busy = rows.sibling != IDLE
    rows = Rows(
        sibling=jnp.where(follows, slots.sibling[:, None] + turn, sibling),
        token=jnp.where(follows, slots.token[:, None], token),
        length=jnp.where(finished | ~busy, 0, rows.length + 1),
        key=jnp.where(follows[:, :, None], key, rows.key),
    )
    return rows, taken + jnp.sum(follows, axis=1, dtype=jnp.int32)
