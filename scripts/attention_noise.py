"""Rounding noise in the gradients of attention: ours, and the form that flash kernels use.

    python scripts/attention_noise.py            # half a minute on a CPU; needs no model

Training's attention (`malt_jax/models/packed_attention.py`) makes its weights again from maximum
and sum, and sums the mean in the softmax's gradient over the keys. FlashAttention 2 and JAX's
splash attention make the weights again from the log-sum-exp, and take that mean from the output as
it was stored. Both are the same in exact arithmetic. Here each is compared with gradients in
float64 of the same inputs, for scores of rising spread: the larger it is, the closer a softmax is
to choosing one key, and the smaller the gradients of queries and keys become.

Printed for each case: the share of softmaxes with a weight above 0.999 (`saturated`), the relative
error of the gradients of queries and keys together, and the share of their elements with the wrong
sign, which Adam's first step would move the wrong way by a whole learning rate, however small they
are. `splash attention` is JAX's kernel itself, interpreted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax.models.packed_attention import Packing, packed_attention

TIME, HEADS, WIDTH = 256, 2, 128
SPREADS = (1.0, 10.0, 30.0, 100.0)
"""Standard deviations of the scores."""
SATURATED = 0.999
"""A softmax with a larger weight is counted as saturated."""
Attention = Callable[[Any, Any, Any], Any]


def main() -> None:
    forms = {"max and sum (ours)": ours, "log-sum-exp and output": from_log_sum_exp}
    forms["splash attention"] = splash
    print("| dtype | spread | saturated | form | relative error | wrong signs |")
    print("| --- | ---: | ---: | --- | ---: | ---: |")
    for dtype in ("float32", "bfloat16"):
        for spread in SPREADS:
            saturated = np.mean(_softmax(*inputs(dtype, spread)[:2]).max(axis=-1) > SATURATED)
            for name, attention in forms.items():
                error, signs = noise(attention, dtype, spread)
                row = f"| {dtype} | {spread:g} | {saturated:.0%} | {name} "
                print(f"{row}| {error:.1e} | {signs:.1%} |", flush=True)


def noise(attention: Attention, dtype: str, spread: float) -> tuple[float, float]:
    """Relative error of the gradients of queries and keys, and their share of wrong signs."""
    q, k, v, d_out = inputs(dtype, spread)
    # Jitted as a training step is; the cotangent is an argument, so that nothing is folded.
    gradients = jax.jit(lambda q, k, v, d: jax.vjp(attention, q, k, v)[1](d)[:2])
    found = gradients(q, k, v, d_out)
    exact = reference(*(np.asarray(x, np.float64) for x in (q, k, v, d_out)))
    got = np.concatenate([np.asarray(x, np.float64).ravel() for x in found])
    true = np.concatenate([x.ravel() for x in exact])
    error = np.linalg.norm(got - true) / np.linalg.norm(true)
    # A gradient that rounds to zero moves nothing, so it has no wrong sign.
    return float(error), float(np.mean(np.sign(got) * np.sign(true) < 0))


def inputs(dtype: str, spread: float) -> list[jax.Array]:
    """Queries, keys, values and the gradient of the output, `[T H h]`, rounded to the dtype."""
    draws = np.random.default_rng(0).standard_normal((4, TIME, HEADS, WIDTH))
    draws[0] *= spread * WIDTH**-0.5
    return [jnp.asarray(x, dtype) for x in draws]


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, d_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of queries and keys in float64, by the textbook's formulas."""
    weights = _softmax(q, k)
    d_weights = np.einsum("thd,shd->hts", d_out, v)
    # Both terms less the top key's, so that they are exact where its weight is nearly 1.
    top = np.take_along_axis(d_weights, weights.argmax(axis=-1)[..., None], axis=-1)
    apart = d_weights - top
    d_scores = weights * (apart - np.sum(weights * apart, axis=-1, keepdims=True))
    return np.einsum("hts,shd->thd", d_scores, k), np.einsum("hts,thd->shd", d_scores, q)


def _softmax(q: Any, k: Any) -> np.ndarray:
    scores = np.einsum("thd,shd->hts", np.asarray(q, np.float64), np.asarray(k, np.float64))
    scores = np.where(np.tri(TIME, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    row = jnp.arange(TIME, dtype=jnp.int32)[None]
    packing = Packing(row, jnp.ones_like(row), jnp.zeros_like(row), None)
    return packed_attention(q[None], k[None], v[None], packing, None)[0]


@jax.custom_vjp
def from_log_sum_exp(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The formulas of FlashAttention 2, in one block."""
    return _forward(q, k, v)[0]


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    scores = jnp.einsum("thd,shd->hts", q, k, preferred_element_type=jnp.float32)
    return jnp.where(jnp.tri(TIME, dtype=bool)[None], scores, -1e30)


def _forward(q, k, v):
    scores = _scores(q, k)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "hts,shd->htd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = jnp.swapaxes(mixed / total, 0, 1).astype(q.dtype)
    return out, (q, k, v, out, top + jnp.log(total))


def _backward(kept, d_out):
    q, k, v, out, log_sum_exp = kept
    weights = jnp.exp(_scores(q, k) - log_sum_exp)
    d_weights = jnp.einsum("thd,shd->hts", d_out, v, preferred_element_type=jnp.float32)
    mean = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1).T[..., None]
    d_scores = (weights * (d_weights - mean)).astype(q.dtype)
    d_v = jnp.einsum("hts,thd->shd", weights.astype(q.dtype), d_out)
    return jnp.einsum("hts,shd->thd", d_scores, k), jnp.einsum("hts,thd->shd", d_scores, q), d_v


from_log_sum_exp.defvjp(_forward, _backward)


def splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        MultiHeadMask,
        make_splash_mha,
    )

    mask = MultiHeadMask([CausalMask((TIME, TIME))] * HEADS)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
             "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")  # fmt: skip
    sizes = BlockSizes(**dict.fromkeys(names, 128))
    kernel = make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=True)
    heads_first = partial(jnp.swapaxes, axis1=0, axis2=1)
    return heads_first(kernel(*map(heads_first, (q, k, v))))


if __name__ == "__main__":
    sys.exit(main())
