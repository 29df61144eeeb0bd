"""From logits to one token per row: temperature, top-k and top-p without a sort, inverse CDF.

Logits come in blocks (`models.head`). One pass over them gives each block's maximum and its sum of
probabilities, and a draw then needs the one block in which it falls.

What top-k or top-p keeps is `score >= threshold`, so equal scores are kept or dropped together. A
sort of the vocabulary, which would find the threshold, costs more than the rest of a decode step.
It is searched for by bisection, first in the blocks with the highest maxima: the tokens that are
kept are few, so nearly always they are all there. Otherwise the whole vocabulary is searched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

CANDIDATES = 64
"""Blocks with the highest maxima in which a threshold is searched for first."""


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
    logits: Float[Array, "R n w"],
    keys: UInt32[Array, "R 2"],
    steps: Int[Array, "R"],
    filters: Filters,
    forced: Int[Array, "R"] | None = None,
) -> Draw:
    """Draws each row's next token with one uniform number from `fold_in(key, step)`.

    Token `i` has the logit `[i // w, i % w]`. Filters apply in the usual order: temperature, top-k,
    then top-p on what top-k kept. `forced`: tokens that rows take in place of what they draw;
    DRAWN (-1) for none.
    """
    width = logits.shape[-1]
    maxima = jnp.max(logits, axis=-1)
    top = jnp.max(maxima, axis=-1)
    total = jnp.sum(jnp.exp(logits - top[:, None, None]), axis=(1, 2))
    random = filters.temperature > 0
    # Rows at temperature 0 do not use the draw; 1 keeps their numbers finite.
    scale = jnp.where(random, filters.temperature, 1.0)

    def scores(logits: Float[Array, "R *b"]) -> Float[Array, "R *b"]:
        """Logits / temperature, shifted to maximum 0. Recomputed at each use, never stored."""
        return (logits - _per_row(top, logits)) / _per_row(scale, logits)

    top_k = jnp.where(random & (filters.top_k < logits[0].size), filters.top_k, 0)
    top_p = jnp.where(random, filters.top_p, 1.0)
    threshold = jax.lax.cond(
        jnp.any((top_k > 0) | (top_p < 1)),
        lambda: _threshold(logits, maxima, scores, top_k, top_p),
        lambda: jnp.full(top.shape, -jnp.inf, jnp.float32),
    )

    def weights(logits: Float[Array, "R *b"]) -> Float[Array, "R *b"]:
        """Unnormalised probabilities after temperature and filters."""
        at = scores(logits)
        return jnp.where(at >= _per_row(threshold, at), jnp.exp(at), 0.0)

    # The inverse CDF in two levels: sums run over blocks first and then inside the chosen block, so
    # that no running sum over the whole vocabulary is formed.
    sums = jnp.sum(weights(logits), axis=-1)
    running = jnp.cumsum(sums, axis=-1)
    target = uniforms(keys, steps) * running[:, -1]
    block = jnp.where(random, _first_past(running, sums, target), jnp.argmax(maxima, axis=-1))
    if forced is not None:
        block = jnp.where(forced >= 0, forced // width, block)
    inside = jnp.take_along_axis(logits, block[:, None, None], axis=1)[:, 0]
    before = jnp.take_along_axis(running - sums, block[:, None], axis=1)[:, 0]
    index = _first_past(jnp.cumsum(weights(inside), axis=-1), weights(inside), target - before)
    index = jnp.where(random, index, jnp.argmax(inside, axis=-1))
    if forced is not None:
        index = jnp.where(forced >= 0, forced % width, index)
    chosen = jnp.take_along_axis(inside, index[:, None], axis=1)[:, 0]
    token = (block * width + index).astype(jnp.int32)
    return Draw(token, chosen - top - jnp.log(total), ~jnp.isfinite(total))


def uniforms(keys: UInt32[Array, "R 2"], steps: Int[Array, "R"]) -> Float[Array, "R"]:
    """One number in [0, 1) per row, from the row's own key and step alone."""

    def one(key: Array, step: Array) -> Array:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, step), (), jnp.float32)

    return jax.vmap(one)(keys, steps)


def _per_row(values: Float[Array, "R"], like: Float[Array, "R *b"]) -> Float[Array, "R ..."]:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _threshold(
    logits: Float[Array, "R n w"],
    maxima: Float[Array, "R n"],
    scores: Callable[[Array], Array],
    top_k: Int[Array, "R"],
    top_p: Float[Array, "R"],
) -> Float[Array, "R"]:
    """The smallest score that top-k, then top-p keeps."""
    n = maxima.shape[-1]
    if n > CANDIDATES:
        highest, blocks = jax.lax.top_k(maxima, CANDIDATES + 1)
        candidates = jnp.take_along_axis(logits, blocks[:, :CANDIDATES, None], axis=1)
        outside = scores(highest[:, -1])

    def narrow(step: Array, threshold: Float[Array, "R"]) -> Float[Array, "R"]:
        """The threshold after top-k, in step 0, or after top-p, in step 1."""
        by_p = step == 1
        active = jnp.where(by_p, top_p < 1, top_k > 0)

        def weigh(at: Float[Array, "R *b"]) -> Float[Array, "R *b"]:
            kept = jnp.where(at >= _per_row(threshold, at), jnp.exp(at), 0.0)
            return jnp.where(by_p, kept, 1.0)

        def search() -> Float[Array, "R"]:
            total = jnp.sum(weigh(scores(logits)), axis=(1, 2))
            need = jnp.where(by_p, top_p * total, top_k.astype(jnp.float32))

            def among(logits: Float[Array, "R m w"], active: Bool[Array, "R"]) -> Float[Array, "R"]:
                at = scores(logits)
                return smallest_kept(at, weigh(at), need, active)

            if n <= CANDIDATES:
                return among(logits, active)
            found = among(candidates, active)
            # Every token above the highest score outside of the candidates is one of them. So a
            # threshold that is not below that score keeps the same tokens of the whole vocabulary.
            # A row's threshold depends on the row alone: only those that miss it search again.
            missed = active & (found < outside)
            again = lambda: jnp.where(missed, among(logits, missed), found)  # noqa: E731
            return jax.lax.cond(jnp.any(missed), again, lambda: found)

        return jax.lax.cond(
            jnp.any(active), lambda: jnp.maximum(threshold, search()), lambda: threshold
        )

    # A loop and not two searches, since they are most of what a decode program takes to compile.
    nothing = jnp.full(top_k.shape, -jnp.inf, jnp.float32)
    return jax.lax.fori_loop(0, 2, narrow, nothing)


class _Bounds(NamedTuple):
    """Bit patterns around the cut, per row, and how many tokens each would keep."""

    low: Int[Array, "R"]  # keeps too little
    high: Int[Array, "R"]  # keeps enough
    kept_low: Int[Array, "R"]
    kept_high: Int[Array, "R"]


def smallest_kept(
    scores: Float[Array, "R m w"],
    weights: Float[Array, "R m w"],
    need: Float[Array, "R"],
    active: Bool[Array, "R"],
) -> Float[Array, "R"]:
    """The largest score t with `sum(weights where scores >= t) >= need`; -inf for inactive rows.

    -inf as well where all weights together are less. Scores are at most 0. By bisection over the
    bit patterns of `-scores`, which for floats of 0 or more are ordered as integers. It is exact in
    at most 31 passes, and ends as soon as one distinct score is left between the bounds of every
    row.
    """
    depth = jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.int32)

    def unfinished(at: _Bounds) -> Array:
        return jnp.any((at.high - at.low > 1) & (at.kept_high - at.kept_low > 1))

    def halve(at: _Bounds) -> _Bounds:
        middle = at.low + (at.high - at.low) // 2
        inside = depth <= middle[:, None, None]
        enough = jnp.sum(jnp.where(inside, weights, 0.0), axis=(1, 2)) >= need
        kept = jnp.sum(inside, axis=(1, 2), dtype=jnp.int32)
        return _Bounds(
            low=jnp.where(enough, at.low, middle),
            high=jnp.where(enough, middle, at.high),
            kept_low=jnp.where(enough, at.kept_low, kept),
            kept_high=jnp.where(enough, kept, at.kept_high),
        )

    # Inactive rows begin with their bounds closed, so that they cause no pass.
    infinity = jnp.full(need.shape, 0x7F800000, jnp.int32)  # the bit pattern of a score of -inf
    everything = jnp.full(need.shape, scores[0].size, jnp.int32)
    low = jnp.where(active, -1, infinity - 1)
    start = _Bounds(low, infinity, jnp.zeros_like(everything), everything)
    cut = -jax.lax.bitcast_convert_type(
        jax.lax.while_loop(unfinished, halve, start).high, jnp.float32
    )
    # The bounds may have met between two scores.
    lowest = jnp.min(jnp.where(scores >= cut[:, None, None], scores, 0.0), axis=(1, 2))
    return jnp.where(cut > -jnp.inf, lowest, cut)


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
