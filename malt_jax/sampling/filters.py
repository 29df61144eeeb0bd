"""From logits to one token a row: temperature, top-k and top-p without a sort, inverse CDF.

A sort of the vocabulary costs more than the rest of a decode step. What is kept by top-k or top-p
is `logit >= threshold`, and the threshold is found by bisection, each step one pass of compare and
sum. Equal logits are kept or dropped together.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

BLOCK = 128


class Draw(NamedTuple):
    """What one decode step draws, per row."""

    token: Int[Array, "R"]
    logprob: Float[Array, "R"]
    """Under the model itself: temperature 1, nothing filtered."""
    bad: Bool[Array, "R"]
    """The logits had a NaN or an infinity."""


def draw(
    logits: Float[Array, "R V"],
    keys: UInt32[Array, "R 2"],
    steps: Int[Array, "R"],
    temperature: Float[Array, "R"],
    top_k: Int[Array, "R"],
    top_p: Float[Array, "R"],
) -> Draw:
    """Draw each row's next token with one uniform number from `fold_in(key, step)`.

    Filters apply in the usual order: temperature, top-k, then top-p on what top-k left.
    """
    top = jnp.max(logits, axis=-1)
    total = jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)
    weights = _filtered_weights(logits, top, temperature, top_k, top_p)
    sampled = inverse_cdf(weights, uniforms(keys, steps))
    # A pass over the vocabulary of its own, so only where a row asks for it.
    token = jax.lax.cond(
        jnp.all(temperature > 0),
        lambda: sampled,
        lambda: jnp.where(temperature > 0, sampled, jnp.argmax(logits, axis=-1).astype(jnp.int32)),
    )
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    logprob = chosen - top - jnp.log(total)
    return Draw(token, logprob, ~jnp.isfinite(total))


def uniforms(keys: UInt32[Array, "R 2"], steps: Int[Array, "R"]) -> Float[Array, "R"]:
    """One number in [0, 1) a row, from the row's own key and step alone."""

    def one(key: Array, step: Array) -> Array:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, step), (), jnp.float32)

    return jax.vmap(one)(keys, steps)


def _filtered_weights(
    logits: Float[Array, "R V"],
    top: Float[Array, "R"],
    temperature: Float[Array, "R"],
    top_k: Int[Array, "R"],
    top_p: Float[Array, "R"],
) -> Float[Array, "R V"]:
    """Unnormalised probabilities after temperature and filters; `top` is the largest logit."""

    def scores() -> Float[Array, "R V"]:
        """With maximum 0. Formed where it is read: the branch not taken then costs no pass."""
        # Rows at temperature 0 don't use the draw; 1 keeps their numbers finite.
        return (logits - top[:, None]) / jnp.where(temperature > 0, temperature, 1.0)[:, None]

    active = temperature > 0
    use_k = active & (top_k > 0) & (top_k < logits.shape[-1])
    use_p = active & (top_p < 1)
    threshold = jax.lax.cond(
        jnp.any(use_k | use_p),
        lambda: _threshold(scores(), use_k, top_k, use_p, top_p),
        lambda: jnp.full(logits.shape[:1], -jnp.inf, jnp.float32),
    )
    return jnp.where(scores() >= threshold[:, None], jnp.exp(scores()), 0.0)


def _threshold(
    scores: Float[Array, "R V"],
    use_k: Bool[Array, "R"],
    top_k: Int[Array, "R"],
    use_p: Bool[Array, "R"],
    top_p: Float[Array, "R"],
) -> Float[Array, "R"]:
    """The smallest score kept by top-k, then top-p."""
    none = jnp.full(scores.shape[:1], -jnp.inf, jnp.float32)
    by_k = jax.lax.cond(
        jnp.any(use_k),
        lambda: jnp.where(use_k, top_k_threshold(scores, jnp.maximum(top_k, 1)), none),
        lambda: none,
    )
    kept = jnp.where(scores >= by_k[:, None], scores, -jnp.inf)
    by_p = jax.lax.cond(
        jnp.any(use_p),
        lambda: jnp.where(use_p, top_p_threshold(kept, top_p), none),
        lambda: none,
    )
    return jnp.maximum(by_k, by_p)


def top_k_threshold(scores: Float[Array, "R V"], k: Int[Array, "R"]) -> Float[Array, "R"]:
    """The k-th largest score of each row; `scores` have maximum 0."""
    ones = jnp.ones_like(scores)
    return _cut(scores, ones, k.astype(jnp.float32))


def top_p_threshold(scores: Float[Array, "R V"], p: Float[Array, "R"]) -> Float[Array, "R"]:
    """The smallest score of the fewest top tokens whose probability reaches p."""
    weights = jnp.exp(scores)
    return _cut(scores, weights, p * jnp.sum(weights, axis=-1))


def _cut(
    scores: Float[Array, "R V"], weights: Float[Array, "R V"], need: Float[Array, "R"]
) -> Float[Array, "R"]:
    """The largest t with `sum(weights where scores >= t) >= need`.

    Bisection over the bit patterns of `-scores`, which for non-negative floats are ordered as
    integers: exact in at most 31 passes, and done as soon as one distinct candidate is left
    between the bounds of every row.
    """
    depth = jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.int32)

    def reach(bound: Array) -> tuple[Array, Array]:
        inside = depth <= bound[:, None]
        mass = jnp.sum(jnp.where(inside, weights, 0.0), axis=-1)
        return mass, jnp.sum(inside, axis=-1, dtype=jnp.int32)

    def unfinished(state: tuple[Array, ...]) -> Array:
        low, high, inside, outside = state
        return jnp.any((high - low > 1) & (inside - outside > 1))

    def halve(state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, inside, outside = state
        middle = low + (high - low) // 2
        mass, count = reach(middle)
        enough = mass >= need
        return (
            jnp.where(enough, low, middle),
            jnp.where(enough, middle, high),
            jnp.where(enough, count, inside),
            jnp.where(enough, outside, count),
        )

    rows = scores.shape[0]
    infinity = 0x7F800000  # depth of a score of -inf
    state = (
        jnp.full((rows,), -1, jnp.int32),
        jnp.full((rows,), infinity, jnp.int32),
        jnp.full((rows,), scores.shape[-1], jnp.int32),
        jnp.zeros((rows,), jnp.int32),
    )
    _, high, _, _ = jax.lax.while_loop(unfinished, halve, state)
    return -jax.lax.bitcast_convert_type(high, jnp.float32)


def inverse_cdf(weights: Float[Array, "R V"], uniform: Float[Array, "R"]) -> Int[Array, "R"]:
    """The first index whose running sum of weights passes `uniform * sum`.

    Sums run over blocks first and then inside the chosen block, so no running sum over the whole
    vocabulary is formed.
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
    """First index with weight whose running sum passes the target; rounding ends at the last."""
    positive = weights > 0
    count = running.shape[-1]
    first = jnp.argmax((running > target[:, None]) & positive, axis=-1)
    last = count - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
    passed = jnp.any((running > target[:, None]) & positive, axis=-1)
    return jnp.where(passed, first, last).astype(jnp.int32)
