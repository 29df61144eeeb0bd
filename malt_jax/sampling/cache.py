"""Keys and values: one read-only prefix a slot, and the suffixes of the rows that decode from it.

The prefix of a prompt is stored once, however many completions decode from it, and no step copies
it: attention forms the logits against prefix and suffix apart and puts them through one softmax.
Rows are not tied to slots. Those of one slot sit together in its seats for the products with the
prefix, which so is read once a step for all of them.

A suffix is a ring over the decode loop's own clock: at each step all rows write at the same place,
so a step is one in-place slice update, and a row's own tokens are the last `length + 1` places.
Rows may begin and end at any step. Keys are stored rotated to their absolute position, so the order
in the ring does not matter.

Layouts are those the matrix products read directly. With keys stored `[places, h]`, or rows as
`[S, w]`, XLA was seen to copy every ring once or more a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from malt_jax.models.attention import MASKED
from malt_jax.models.spec import ModelSpec


class KV(NamedTuple):
    """One layer's keys and values for each of `B` slots or rows.

    The scales are those of an int8 cache, None otherwise.
    """

    k: Float[Array, "B K h places"] | Int[Array, "B K h places"]
    v: Float[Array, "B K places h"] | Int[Array, "B K places h"]
    k_scale: Float[Array, "B K places"] | None = None
    v_scale: Float[Array, "B K places"] | None = None


def empty(spec: ModelSpec, count: int, places: int, dtype: Any) -> list[KV]:
    """A cache of zeros, one entry a layer."""
    shape, h = (count, spec.kv_heads, places), spec.head_dim
    scales = (shape, shape) if dtype == jnp.int8 else ()

    def layer() -> KV:
        values = (jnp.zeros((*shape[:2], h, places), dtype), jnp.zeros((*shape, h), dtype))
        return KV(*values, *(jnp.zeros(shape, jnp.float32) for shape in scales))

    return [layer() for _ in range(spec.num_layers)]


def quantise(x: Float[Array, "*b h"]) -> tuple[Int[Array, "*b h"], Float[Array, "*b"]]:
    """Symmetric int8 with one scale a vector: the largest magnitude becomes 127."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-30) / 127.0
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def stored(k: Float[Array, "B n K h"], v: Float[Array, "B n K h"], like: KV) -> KV:
    """New keys and values in the form the cache keeps them in."""
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if like.k_scale is None:
        return KV(jnp.swapaxes(k.astype(like.k.dtype), 2, 3), v.astype(like.v.dtype))
    (k, k_scale), (v, v_scale) = quantise(k), quantise(v)
    return KV(jnp.swapaxes(k, 2, 3), v, k_scale, v_scale)


PLACE_AXIS = KV(k=3, v=2, k_scale=2, v_scale=2)


def append(
    suffix: KV, k: Float[Array, "R 1 K h"], v: Float[Array, "R 1 K h"], clock: Int[Array, ""]
) -> KV:
    """Write one token a row at the ring's place `clock`."""
    return KV(
        *(
            None
            if ring is None
            else jax.lax.dynamic_update_slice_in_dim(ring, new, clock, axis=axis)
            for ring, new, axis in zip(suffix, stored(k, v, suffix), PLACE_AXIS, strict=True)
        )
    )


class Seats(NamedTuple):
    """Which rows read which slot: each row that is at work has one of its slot's `w` seats."""

    row: Int[Array, "S w"]
    """The row in a seat, or R where it is empty."""
    seat: Int[Array, "R"]
    """A row's seat, counted through all slots, or S * w for an idle row."""


def take_seats(slot: Int[Array, "R"], slots: int, width: int) -> Seats:
    """A seat for every row of `slot`, in the rows' order; `slots` there is an idle row's."""
    rows = slot.shape[0]
    same = (slot[:, None] == slot[None, :]) & jnp.tri(rows, k=-1, dtype=bool)
    seat = slot * width + jnp.sum(same, axis=1, dtype=jnp.int32)
    seat = jnp.where(slot < slots, seat, slots * width)
    row = jnp.full(slots * width, rows, jnp.int32)
    row = row.at[seat].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    return Seats(row.reshape(slots, width), seat)


def decode_attention(
    q: Float[Array, "R 1 H h"],
    prefix: KV,
    suffix: KV,
    seats: Seats,
    prompt: Int[Array, "R"],
    length: Int[Array, "R"],
    clock: Int[Array, ""],
    window: Int[Array, ""] | int | None,
    softcap: float | None,
) -> Float[Array, "R 1 H h"]:
    """One token a row against its slot's shared prefix and its own suffix; `q` comes scaled.

    A row reads the first `prompt` places of its slot and the last `length + 1` of its ring.
    """
    rows, _, heads, head_dim = q.shape
    groups, places, ring = prefix.k.shape[1], prefix.k.shape[3], suffix.k.shape[3]
    q = q.reshape(rows, groups, heads // groups, head_dim)
    place = jnp.arange(places, dtype=jnp.int32)[None, None]
    in_prefix = place < jnp.where(seats.row < rows, _of_rows(prompt, seats), 0)[..., None]
    age = (clock - jnp.arange(ring, dtype=jnp.int32)[None]) % ring
    in_suffix = age <= length[:, None]
    if window is not None:
        in_prefix &= _of_rows(prompt + length, seats)[..., None] - place < window
        in_suffix &= age < window
    shared = _scores(_seated(q, seats), prefix.k, prefix.k_scale, softcap)
    mask = jnp.repeat(in_prefix, heads // groups, axis=1)[:, None]
    shared = jnp.where(mask, shared, MASKED)
    own = _scores(q, suffix.k, suffix.k_scale, softcap)
    own = jnp.where(in_suffix[:, None, None], own, MASKED)
    # One softmax over both blocks without joining them: each is summed below its own maximum, then
    # brought to the common one. A row always sees its own last token, so that is a real score, and
    # a block of masked places weighs exactly 0.
    of_shared, of_own = jnp.max(shared, axis=-1), jnp.max(own, axis=-1)
    shared, own = jnp.exp(shared - of_shared[..., None]), jnp.exp(own - of_own[..., None])
    mixed = _unseated(_mix(shared, prefix.v, prefix.v_scale, q.dtype), seats)
    of_shared, total = (_unseated(x, seats) for x in (of_shared, jnp.sum(shared, axis=-1)))
    top = jnp.maximum(of_shared, of_own)
    less, more = jnp.exp(of_shared - top), jnp.exp(of_own - top)
    total = total * less + jnp.sum(own, axis=-1) * more
    out = mixed * less[..., None] + _mix(own, suffix.v, suffix.v_scale, q.dtype) * more[..., None]
    return (out / total[..., None]).astype(q.dtype).reshape(rows, 1, heads, head_dim)


def _of_rows(x: Array, seats: Seats) -> Array:
    """Each seat's row of `x`; an empty seat has the last row's, which nothing reads."""
    return jnp.take(x, seats.row, axis=0, mode="clip")


def _seated(x: Float[Array, "R K r *h"], seats: Seats) -> Float[Array, "S K wr *h"]:
    slots, width = seats.row.shape
    x = _of_rows(x, seats).swapaxes(1, 2)
    return x.reshape(slots, x.shape[1], width * x.shape[3], *x.shape[4:])


def _unseated(x: Float[Array, "S K wr *h"], seats: Seats) -> Float[Array, "R K r *h"]:
    slots, width = seats.row.shape
    x = x.reshape(slots, x.shape[1], width, -1, *x.shape[3:]).swapaxes(1, 2)
    return jnp.take(x.reshape(slots * width, *x.shape[2:]), seats.seat, axis=0, mode="clip")


def _scores(
    q: Float[Array, "B K t h"], k: Array, scale: Array | None, softcap: float | None
) -> Float[Array, "B K t places"]:
    """Soft-capped logits in float32."""
    scores = jnp.einsum("bkth,bkhp->bktp", q, k.astype(q.dtype), preferred_element_type=jnp.float32)
    if scale is not None:
        scores = scores * scale[:, :, None]
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _mix(
    weights: Float[Array, "B K t places"], v: Array, scale: Array | None, dtype: Any
) -> Float[Array, "B K t h"]:
    """The weighted sum of values, accumulated in float32."""
    if scale is not None:
        weights = weights * scale[:, :, None]
    return jnp.einsum(
        "bktp,bkph->bkth",
        weights.astype(dtype),
        v.astype(dtype),
        preferred_element_type=jnp.float32,
    )


def extend_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    prefix: KV,
    target: Int[Array, "B"],
    start: Int[Array, "B"],
    length: Int[Array, "B"],
    window: Int[Array, ""] | int | None,
    softcap: float | None,
) -> tuple[Float[Array, "B T H h"], KV]:
    """`length` new tokens after the first `start` of slot `target`; returns the slots with them.

    A lane writes its keys and values, then reads its slot, and the next lane follows, so lanes of
    one slot may come in their order. No slot is copied, and logits exist for one lane at a time.
    What a slot holds beyond a lane's own tokens is not read.
    """
    batch, time, heads, head_dim = q.shape
    groups, places = prefix.v.shape[1:3]
    # [B, T, H, h] -> [B, K, T * r, h]: the heads of a group share its keys.
    q = q.reshape(batch, time, groups, -1, head_dim).swapaxes(1, 2)
    q = q.reshape(batch, groups, -1, head_dim)
    new = stored(k[:, :places], v[:, :places], prefix)

    def attend(prefix: KV, lane: tuple[Array, KV, Array, Array, Array]) -> tuple[KV, Array]:
        q, new, target, start, length = lane
        prefix = _write(prefix, new, target, start, length)
        slot = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, target, 0), prefix)
        position = start + jnp.arange(time, dtype=jnp.int32)
        distance = position[:, None] - jnp.arange(places, dtype=jnp.int32)[None, :]
        mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        mask = jnp.repeat(mask, heads // groups, axis=0)[None, None]
        scores = jnp.where(mask, _scores(q[None], slot.k, slot.k_scale, softcap), MASKED)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        total = jnp.sum(weights, axis=-1)
        out = _mix(weights, slot.v, slot.v_scale, q.dtype) / total[..., None]
        return prefix, out[0].astype(q.dtype)

    prefix, out = jax.lax.scan(attend, prefix, (q, new, target, start, length))
    out = out.reshape(batch, groups, time, -1, head_dim).swapaxes(1, 2)
    return out.reshape(batch, time, heads, head_dim), prefix


def _write(
    prefix: KV,
    new: KV,
    target: Int[Array, ""],
    start: Int[Array, ""],
    length: Int[Array, ""],
) -> KV:
    """One lane's tokens at their places in its slot, in place; a lane of no slot writes nothing.

    `new` is the lane's part of `stored`. Given a scatter of all lanes, the TPU compiler copies the
    whole cache.
    """
    slots, _, places, _ = prefix.v.shape
    time = new.v.shape[1]
    # A slice that would run over the end is moved back, and the tokens in it on.
    at = jnp.minimum(start, places - time)
    moved = start - at
    step = jnp.arange(time, dtype=jnp.int32)
    fresh = (step >= moved) & (step < moved + length) & (target < slots)

    def put(cache: Array | None, new: Array | None, axis: int) -> Array | None:
        if cache is None or new is None:
            return None
        where = [jnp.int32(0)] * cache.ndim
        where[0], where[axis] = target, at
        size = (1, *cache.shape[1:axis], time, *cache.shape[axis + 1 :])
        old = jax.lax.dynamic_slice(cache, where, size)
        kept = fresh.reshape([time if i == axis else 1 for i in range(cache.ndim)])
        new = jnp.roll(new[None], moved, axis)
        return jax.lax.dynamic_update_slice(cache, jnp.where(kept, new, old), where)

    return KV(*map(put, prefix, new, PLACE_AXIS))


def copy_slots(caches: list[KV], source: Int[Array, "C"], target: Int[Array, "C"]) -> list[KV]:
    """Slot `target` as slot `source`, in place, pair by pair up to the first without a target."""

    def copy(pair: Array, caches: list[KV]) -> list[KV]:
        def put(cache: Array) -> Array:
            new = jax.lax.dynamic_index_in_dim(cache, source[pair], 0)
            return jax.lax.dynamic_update_slice_in_dim(cache, new, target[pair], 0)

        return jax.tree.map(put, caches)

    count = jnp.sum(target < caches[0].v.shape[0], dtype=jnp.int32)
    return jax.lax.fori_loop(0, count, copy, caches)
