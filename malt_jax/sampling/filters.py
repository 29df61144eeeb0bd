"""From logits to one token per row: temperature, top-k and top-p without a sort, inverse CDF.

A sort of the vocabulary costs more than the rest of a decode step. What top-k or top-p keeps is
`score >= threshold`. The threshold is found by bisection, each step one pass of compare and sum.
Equal scores are kept or dropped together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

BLOCK = 128
"""Tokens per block of the inverse CDF."""


class Filters(NamedTuple):
    """How each row draws; see `request.SamplingParams`."""

    temperature: Float[Any, "R"]
    top_k: Int[Any, "R"]
    top_p: Float[Any, "R"]


class Draw(NamedTuple):
    """What one decode step draws, per row."""

    token: Int[Array, "R"]
    logprob: Float[Array, "R"]  # under the model itself: temperature 1, nothing filtered out
    not_finite: Bool[Array, "R"]  # the logits had a NaN or an infinity


def draw(
    logits: Float[Array, "R V"],
    keys: UInt32[Array, "R 2"],
    steps: Int[Array, "R"],
    filters: Filters,
    forced: Int[Array, "R"] | None = None,
) -> Draw:
    """Draws each row's next token with one uniform number from `fold_in(key, step)`.

    Filters apply in the usual order: temperature, top-k, then top-p on what top-k kept. `forced`:
    tokens that rows take in place of what they draw; DRAWN (-1) for none.
    """
    top = jnp.max(logits, axis=-1)
    total = jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)
    sampled = inverse_cdf(_filtered_weights(logits, top, filters), uniforms(keys, steps))
    # The argmax is a pass over the vocabulary of its own, so only where a row asks for it.
    random = filters.temperature > 0
    token = jax.lax.cond(
        jnp.all(random),
        lambda: sampled,
        lambda: jnp.where(random, sampled, jnp.argmax(logits, axis=-1).astype(jnp.int32)),
    )
    if forced is not None:
        token = jnp.where(forced >= 0, forced, token)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    return Draw(token, chosen - top - jnp.log(total), ~jnp.isfinite(total))


def uniforms(keys: UInt32[Array, "R 2"], steps: Int[Array, "R"]) -> Float[Array, "R"]:
    """One number in [0, 1) per row, from the row's own key and step alone."""

    def one(key: Array, step: Array) -> Array:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, step), (), jnp.float32)

    return jax.vmap(one)(keys, steps)


def _filtered_weights(
    logits: Float[Array, "R V"], top: Float[Array, "R"], filters: Filters
) -> Float[Array, "R V"]:
    """Unnormalised probabilities after temperature and filters; `top` is the largest logit."""
    random = filters.temperature > 0

    def scores() -> Float[Array, "R V"]:
        """Logits / temperature, shifted to maximum 0.

        Recomputed at each use, so an untaken branch costs no pass.
        """
        # Rows at temperature 0 do not use the draw; 1 keeps their numbers finite.
        return (logits - top[:, None]) / jnp.where(random, filters.temperature, 1.0)[:, None]

    top_k = jnp.where(random & (filters.top_k < logits.shape[-1]), filters.top_k, 0)
    top_p = jnp.where(random, filters.top_p, 1.0)
    threshold = jax.lax.cond(
        jnp.any((top_k > 0) | (top_p < 1)),
        lambda: _threshold(scores(), top_k, top_p),
        lambda: jnp.full(logits.shape[:1], -jnp.inf, jnp.float32),
    )
    return jnp.where(scores() >= threshold[:, None], jnp.exp(scores()), 0.0)


def _threshold(
    scores: Float[Array, "R V"], top_k: Int[Array, "R"], top_p: Float[Array, "R"]
) -> Float[Array, "R"]:
    """The smallest score that top-k, then top-p keeps."""
    by_k = top_k_threshold(scores, top_k)
    by_p = top_p_threshold(jnp.where(scores >= by_k[:, None], scores, -jnp.inf), top_p)
    return jnp.maximum(by_k, by_p)


def top_k_threshold(scores: Float[Array, "R V"], k: Int[Array, "R"]) -> Float[Array, "R"]:
    """The k-th largest score of each row, or -inf where k is 0; `scores` have maximum 0."""
    return _cut(scores, jnp.ones_like(scores), k.astype(jnp.float32), k > 0)


def top_p_threshold(scores: Float[Array, "R V"], p: Float[Array, "R"]) -> Float[Array, "R"]:
    """The smallest score of the fewest top tokens whose probabilities sum to p; -inf for p of 1."""
    weights = jnp.exp(scores)
    return _cut(scores, weights, p * jnp.sum(weights, axis=-1), p < 1)


class _Bounds(NamedTuple):
    """Bit patterns around the cut, per row, and how many tokens each would keep."""

    low: Int[Array, "R"]  # keeps too little
    high: Int[Array, "R"]  # keeps enough
    kept_low: Int[Array, "R"]
    kept_high: Int[Array, "R"]


def _cut(
    scores: Float[Array, "R V"],
    weights: Float[Array, "R V"],
    need: Float[Array, "R"],
    active: Bool[Array, "R"],
) -> Float[Array, "R"]:
    """The largest t with `sum(weights where scores >= t) >= need`, or -inf for inactive rows.

    Bisection over the bit patterns of `-scores`, which for floats of 0 or more are ordered as
    integers. It is exact in at most 31 passes, and ends as soon as one distinct candidate is left
    between the bounds of every row.
    """
    depth = jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.int32)

    def unfinished(at: _Bounds) -> Array:
        return jnp.any((at.high - at.low > 1) & (at.kept_high - at.kept_low > 1))

    def halve(at: _Bounds) -> _Bounds:
        middle = at.low + (at.high - at.low) // 2
        inside = depth <= middle[:, None]
        enough = jnp.sum(jnp.where(inside, weights, 0.0), axis=-1) >= need
        kept = jnp.sum(inside, axis=-1, dtype=jnp.int32)
        return _Bounds(
            low=jnp.where(enough, at.low, middle),
            high=jnp.where(enough, middle, at.high),
            kept_low=jnp.where(enough, at.kept_low, kept),
            kept_high=jnp.where(enough, kept, at.kept_high),
        )

    # Inactive rows begin with their bounds closed, so that they cause no pass.
    infinity = jnp.full(need.shape, 0x7F800000, jnp.int32)  # the bit pattern of a score of -inf
    everything = jnp.full(need.shape, scores.shape[-1], jnp.int32)
    low = jnp.where(active, -1, infinity - 1)
    start = _Bounds(low, infinity, jnp.zeros_like(everything), everything)
    cut = jax.lax.while_loop(unfinished, halve, start).high
    return -jax.lax.bitcast_convert_type(cut, jnp.float32)


def inverse_cdf(weights: Float[Array, "R V"], uniform: Float[Array, "R"]) -> Int[Array, "R"]:
    """The first index whose running sum of weights passes `uniform * sum`.

    Sums run over blocks first and then inside the chosen block, so that no running sum over the
    whole vocabulary is formed.
    """
    rows, vocab = weights.shape
    block = min(BLOCK, vocab)
    blocks = -(-vocab // block)
    padded = jnp.pad(weights, ((0, 0), (0, blocks * block - vocab)))
    padded = padded.reshape(rows, blocks, block)
    sums = jnp.sum(padded, axis=-1)
    running = jnp.cumsum(sums, axis=-1)
    target = uniform * running[:, -1]
    chosen = _first_past(running, sums, target)
    before = jnp.take_along_axis(running - sums, chosen[:, None], axis=1)[:, 0]
    inside = jnp.take_along_axis(padded, chosen[:, None, None], axis=1)[:, 0]
    index = _first_past(jnp.cumsum(inside, axis=-1), inside, target - before)
    return (chosen * block + index).astype(jnp.int32)


def _first_past(
    running: Float[Array, "R n"], weights: Float[Array, "R n"], target: Float[Array, "R"]
) -> Int[Array, "R"]:
    """First index with a weight whose running sum passes the target, or the last with a weight.

    The last one: rounding can leave the target above the whole sum.
    """
    positive = weights > 0
    passes = (running > target[:, None]) & positive
    last = running.shape[-1] - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
    first = jnp.argmax(passes, axis=-1)
    return jnp.where(jnp.any(passes, axis=-1), first, last).astype(jnp.int32)
