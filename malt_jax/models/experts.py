"""Mixture of experts: a router sends each token to a few of many gated MLPs and sums what they say.

No token is dropped, and no expert has a capacity. Tokens are sorted by the expert they go to, so
that each projection of all experts is one ragged product (`jax.lax.ragged_dot`).

On a mesh every device has its own experts (axis `expert`) and channels (axis `tensor`). The devices
along `expert` have rows of their own too: each gathers the rows of all of them, computes its part
of the sum, and gets back the sum for its own rows. Left to the partitioner, the tokens of all
devices would be sorted together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from malt_jax.models.linear import ZEROS, Linear, activation, normal, param
from malt_jax.models.lora import LayerAdapter, dropped, times
from malt_jax.models.quantized import QuantizedMatrix, dequantized
from malt_jax.models.sharding import EXPERT, TENSOR, partition
from malt_jax.models.spec import Mixture, ModelSpec

AXES = {"gate": ("expert", None, "mlp"), "up": ("expert", None, "mlp"),
        "down": ("expert", "mlp", None)}  # fmt: skip
"""How each projection of the experts is split while it computes: never over `embed`."""


class ExpertLinear(nnx.Module):
    """`x @ kernel[e] + bias[e]` for the expert e of each row."""

    def __init__(self, experts: int, d_in: int, d_out: int, axes: tuple[str, str], *, bias: bool,
                 rngs: nnx.Rngs, dtype: Any):  # fmt: skip
        shape = (experts, d_in, d_out)
        self.kernel = param(rngs, normal(d_in), shape, ("expert", *axes), dtype)
        bias_axes = ("expert", axes[1])
        self.bias = param(rngs, ZEROS, (experts, d_out), bias_axes, dtype) if bias else None


class ExpertWeights(NamedTuple):
    """What one device holds of one projection of the experts: its experts, its channels."""

    kernel: Float[Array, "E i o"] | QuantizedMatrix
    bias: Float[Array, "E o"] | None
    pair: dict[str, Array] | None
    """The adapter's factors `a` [E, i, r] and `b` [E, r, o]."""


class Routing(NamedTuple):
    """Which rows go to which of a device's experts. A row is one choice of one token."""

    token: Int[Array, "M"]
    """Each row's token; rows of one expert are together, those of other devices come last."""
    expert: Int[Array, "M"]
    """Each row's expert, counted from the device's first; at least E for other devices' rows."""
    sizes: Int[Array, "E"]
    place: Int[Array, "M"]
    """Where the row of each choice is, choices being counted through all tokens."""


def choose(
    mixture: Mixture, logits: Float[Array, "N E"]
) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
    """The weights and numbers of each token's experts, the likeliest first."""
    weights, chosen = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), mixture.chosen)
    if mixture.normalised:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, chosen


def mix_experts(
    spec: ModelSpec,
    x: Float[Array, "B T D"],
    router: Linear,
    experts: dict[str, ExpertLinear],
    lora: LayerAdapter,
) -> tuple[Float[Array, "B T D"], Float[Array, "E"]]:
    """The mixture's output, and the share of tokens that chose each expert."""
    assert spec.mixture is not None
    weights, chosen = choose(spec.mixture, router(x).reshape(-1, spec.mixture.experts))
    weights, chosen = (y.reshape(*x.shape[:2], -1) for y in (weights, chosen))
    held = {
        name: ExpertWeights(
            linear.kernel[...],
            None if linear.bias is None else linear.bias[...],
            lora.pairs.get(f"expert_{name}"),
        )
        for name, linear in experts.items()
    }
    load = jnp.mean(jax.nn.one_hot(chosen, spec.mixture.experts), axis=(0, 1, 2))
    load = load * spec.mixture.chosen
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _experts_here(spec, lora.scale, x, weights, chosen, held), load
    rows = partition(("batch", None, None), x.shape, mesh)
    parts = {name: _partitions(weights, AXES[name], mesh) for name, weights in held.items()}

    split = _axes_of(parts)
    # Rows that the axis does not divide are on all its devices already.
    exchanged = EXPERT in split and EXPERT in _names(rows[0])
    summed = tuple(axis for axis in split if not (exchanged and axis == EXPERT))

    def on_shard(x, weights, chosen, held):
        if exchanged:
            x, weights, chosen = (
                jax.lax.all_gather(y, EXPERT, axis=0, tiled=True) for y in (x, weights, chosen)
            )
        y = _experts_here(spec, lora.scale, x, weights, chosen, held, split)
        if exchanged:
            y = jax.lax.psum_scatter(y, EXPERT, scatter_dimension=0, tiled=True)
        return jax.lax.psum(y, summed) if summed else y

    run = jax.shard_map(
        on_shard, in_specs=(rows, rows, rows, parts), out_specs=rows, check_vma=False
    )
    return run(x, weights, chosen, held), load


def _experts_here(
    spec: ModelSpec,
    scale: float,
    x: Float[Array, "B T D"],
    weights: Float[Array, "B T k"],
    chosen: Int[Array, "B T k"],
    held: dict[str, ExpertWeights],
    split: tuple[str, ...] = (),
) -> Float[Array, "B T D"]:
    """The part of the output that comes from this device's experts and channels."""
    count = held["gate"].kernel.shape[0]
    routing = _route(chosen.reshape(-1), count, EXPERT in split, chosen.shape[-1])
    mine = (routing.expert < count)[:, None]

    def kept(y: Float[Array, "M c"]) -> Float[Array, "M c"]:
        """What a ragged product gives for rows beyond its groups is undefined, backward as well."""
        return jnp.where(mine, y, 0) if EXPERT in split else y

    rows = kept(x.reshape(-1, x.shape[-1])[routing.token])

    def project(name: str, x: Float[Array, "M i"], biased: Any = True) -> Float[Array, "M o"]:
        kernel, bias, pair = held[name]
        y = jax.lax.ragged_dot(x, dequantized(kernel, x.dtype), routing.sizes)
        if bias is not None:
            y = y + jnp.where(biased, bias[routing.expert.clip(0, count - 1)], 0)
        if pair is not None:
            y = y + _lora(x, pair, routing.sizes, scale).astype(y.dtype)
        return kept(y)

    y = _gated(spec, project("gate", rows), project("up", rows))
    # The output is a sum over the devices that split the channels, so that one adds the bias.
    y = project("down", y, jax.lax.axis_index(TENSOR) == 0 if TENSOR in split else True)
    y = y[routing.place].astype(jnp.float32)
    y = y.reshape(*chosen.shape, -1) * weights[..., None]
    return jnp.sum(y, axis=2).astype(x.dtype)


def _gated(
    spec: ModelSpec, gate: Float[Array, "M F"], up: Float[Array, "M F"]
) -> Float[Array, "M F"]:
    """The hidden channels of the experts."""
    if spec.activation != "clamped_swiglu":
        return activation(spec)(gate) * up
    gate = jnp.minimum(gate, spec.swiglu_limit)
    up = jnp.clip(up, -spec.swiglu_limit, spec.swiglu_limit)
    return gate * jax.nn.sigmoid(times(gate, spec.swiglu_gain)) * (up + 1)


def _route(chosen: Int[Array, "M"], count: int, split: bool, per_token: int) -> Routing:
    """Sorts the choices of all tokens by expert, this device's `count` experts first."""
    first = jax.lax.axis_index(EXPERT) * count if split else 0
    here = (chosen >= first) & (chosen < first + count)
    expert = jnp.where(here, chosen - first, count)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=count + 1)[:count].astype(jnp.int32)
    return Routing(order // per_token, expert[order], sizes, jnp.argsort(order))


def _lora(
    x: Float[Array, "M i"], pair: dict[str, Array], sizes: Int[Array, "E"], scale: float
) -> Float[Array, "M o"]:
    """An adapter's contribution, in float32: its factors are small, and so is what they add."""
    x = dropped(x, pair).astype(jnp.float32)
    y = jax.lax.ragged_dot(jax.lax.ragged_dot(x, pair["a"], sizes), pair["b"], sizes)
    return y * scale


def _partitions(weights: ExpertWeights, axes: tuple, mesh: Any) -> Any:
    """The partition of each array of one projection."""
    expert, d_in, d_out = axes

    def of(x: Array | None, *axes: str | None) -> Any:
        return None if x is None else partition(axes, x.shape, mesh)

    pair = weights.pair and {
        # Dropout's key and rate are the same everywhere.
        side: of(x, *{"a": (expert, d_in, None), "b": (expert, None, d_out)}.get(side, ()))
        for side, x in weights.pair.items()
    }
    kernel = jax.tree.map(lambda x: of(x, *axes), weights.kernel)
    return ExpertWeights(kernel, of(weights.bias, expert, d_out), pair)


def _axes_of(parts: dict[str, Any]) -> tuple[str, ...]:
    """The mesh axes that experts and channels are split over."""
    kernels = jax.tree.leaves([part.kernel for part in parts.values()])
    return tuple(sorted({name for kernel in kernels for name in _names(*kernel)}))


def _names(*entries: str | tuple[str, ...] | None) -> list[str]:
    """The mesh axes in some entries of a partition, where a single one stands without a tuple."""
    return [name for one in entries for name in ((one,) if isinstance(one, str) else one or ())]
