"""LoRA adapters: a small trainable pytree beside the frozen base (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from malt_jax.config.lora import LoraConfig
from malt_jax.errors import UserError
from malt_jax.models.matmul import matmul
from malt_jax.models.sharding import AnyMesh, named
from malt_jax.models.spec import ModelSpec


@dataclass(frozen=True)
class Adapter:
    """One role's low-rank update: `W + scale * a @ b` for each targeted projection.

    `layers`: a list with one `{target: {"a": [in, r], "b": [r, out]}}` per layer, or for stacked
    layers one such dictionary whose leaves have a leading layer axis. Adapters of the same
    structure and scale share a compiled program.
    """

    layers: Any
    scale: float

    @property
    def stacked(self) -> bool:
        return isinstance(self.layers, dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The projections that it updates, the same in every layer."""
        return tuple(self.layers if self.stacked else self.layers[0])


# `scale` is static: it is compiled in, and tree functions see the factors only.
jax.tree_util.register_dataclass(Adapter, data_fields=["layers"], meta_fields=["scale"])


class LayerAdapter(NamedTuple):
    """One layer's part of an adapter."""

    pairs: dict[str, dict[str, Array]]
    """By projection; a projection that is missing has no update."""
    scale: float


class Projection(NamedTuple):
    """The shape of one projection of a layer, with the logical axis of each side."""

    inputs: tuple[int, str]
    outputs: tuple[int, str]
    experts: int = 0
    """How many matrices of this shape a layer has, or 0 for one that is no expert's."""


def projections(spec: ModelSpec) -> dict[str, Projection]:
    """The projections that a layer of this model has, by name."""
    model, mlp = (spec.d_model, "embed"), (spec.d_mlp, "mlp")
    heads = (spec.heads * spec.head_dim, "heads")
    kv = (spec.kv_heads * spec.head_dim, "kv_heads")
    attention = {
        "q": Projection(model, heads),
        "k": Projection(model, kv),
        "v": Projection(model, kv),
        "o": Projection(heads, model),
    }
    mlps = {"gate": (model, mlp), "up": (model, mlp), "down": (mlp, model)}
    if spec.mixture is None:
        return attention | {name: Projection(*sides) for name, sides in mlps.items()}
    experts = spec.mixture.experts
    return attention | {
        f"expert_{name}": Projection(*sides, experts) for name, sides in mlps.items()
    }


def targets_of(spec: ModelSpec, config: LoraConfig) -> tuple[str, ...]:
    """The configured targets that the model has: a mixture of experts has no dense MLP."""
    found = tuple(target for target in config.targets if target in projections(spec))
    if not found:
        raise UserError(
            f"targets: found {', '.join(config.targets)}, none of which this {spec.family} model "
            f"has; allowed: {', '.join(projections(spec))}."
        )
    return found


def init_adapter(
    spec: ModelSpec, config: LoraConfig, key: Array, *, stacked: bool = False
) -> Adapter:
    """A float32 adapter that changes nothing yet, since one factor of each pair is zero.

    The other is uniform in +-1/sqrt(its inputs), PEFT's choice. Each pair has a key of its own,
    so that stacked and unstacked adapters of one key are equal.
    """
    shapes, targets = projections(spec), targets_of(spec, config)

    def pair(key: Array, target: str) -> dict[str, Array]:
        (d_in, _), (d_out, _), experts = shapes[target]
        lead = (experts,) if experts else ()
        a, b = (*lead, d_in, config.rank), (*lead, config.rank, d_out)
        zeros = partial(jnp.zeros, dtype=jnp.float32)
        uniform = partial(jax.random.uniform, key, dtype=jnp.float32)
        if config.zero_side == "a":
            bound = config.rank**-0.5
            return {"a": zeros(a), "b": uniform(b, minval=-bound, maxval=bound)}
        bound = d_in**-0.5
        return {"a": uniform(a, minval=-bound, maxval=bound), "b": zeros(b)}

    keys = jax.random.split(key, (spec.num_layers, len(targets)))
    layers = [
        {target: pair(keys[layer, i], target) for i, target in enumerate(targets)}
        for layer in range(spec.num_layers)
    ]
    adapter = Adapter(layers, config.scale)
    return stack_adapter(adapter) if stacked else adapter


def stack_adapter(adapter: Adapter) -> Adapter:
    """The same adapter for a decoder with stacked layers."""
    if adapter.stacked:
        return adapter
    return replace(adapter, layers=jax.tree.map(lambda *xs: jnp.stack(xs), *adapter.layers))


def unstack_adapter(adapter: Adapter) -> Adapter:
    """The same adapter for a decoder with one module per layer."""
    if not adapter.stacked:
        return adapter
    depth = len(jax.tree.leaves(adapter.layers)[0])
    layers = [jax.tree.map(lambda x, i=i: x[i], adapter.layers) for i in range(depth)]
    return replace(adapter, layers=layers)


def is_stacked(params: nnx.State) -> bool:
    """Whether these parameters have a leading layer axis, and an adapter over them needs one."""
    return "q" in params["layers"]


def merge_adapter(params: nnx.State, adapter: Adapter) -> nnx.State:
    """The base with `scale * a @ b` added to its kernels, summed in float32, in their own dtype.

    Takes stacked and unstacked parameters; the base itself is not changed.
    """
    flat = dict(nnx.to_flat_state(params))
    stacked = is_stacked(params)
    adapter = stack_adapter(adapter) if stacked else unstack_adapter(adapter)
    layers = {(): adapter.layers} if stacked else {(i,): x for i, x in enumerate(adapter.layers)}
    for index, targets in layers.items():
        for target, pair in targets.items():
            path = ("layers", *index, target, "kernel")
            kernel = flat[path][...]
            # By default an accelerator may round float32 factors to fewer bits before it
            # multiplies. In bfloat16 the sum itself would lose most of a small update.
            update = adapter.scale * jnp.matmul(pair["a"], pair["b"], precision="highest")
            merged = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
            flat[path] = flat[path].replace(merged)
    return nnx.from_flat_state(flat)


def adapter_shardings(spec: ModelSpec, adapter: Adapter, mesh: AnyMesh) -> Adapter:
    """Shardings: each factor is split like the kernel's side that it touches, never by rank."""
    shapes = projections(spec)

    def of(path: tuple, leaf: Any) -> jax.sharding.NamedSharding:
        target, side = path[-2].key, path[-1].key
        (_, d_in), (_, d_out), experts = shapes[target]
        # A split rank would add a sum over devices to each projection, to save very little.
        axes = (d_in, None) if side == "a" else (None, d_out)
        axes = ("expert", *axes) if experts else axes
        return named((None,) * (leaf.ndim - len(axes)) + axes, leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(of, adapter)


def join_adapters(adapters: Sequence[Adapter | None]) -> Adapter:
    """Adapters side by side along the rank, for batches whose rows have different ones.

    A product with all of them costs little more than with one, since a rank of 16 fills an eighth
    of a matrix unit's lanes; `for_rows` keeps each row's own part. The result is unstacked; None
    changes nothing. Every pair has a further leaf, `owner` `[r]`: whose column of `a` it is.
    """
    present = [(i, unstack_adapter(x)) for i, x in enumerate(adapters) if x is not None]
    layers = []
    for layer in zip(*(adapter.layers for _, adapter in present), strict=True):
        joined = {}
        for target in dict.fromkeys(target for pairs in layer for target in pairs):
            parts = [
                (i, adapter.scale, pairs[target])
                for (i, adapter), pairs in zip(present, layer, strict=True)
                if target in pairs
            ]
            joined[target] = {
                "a": jnp.concatenate([pair["a"] for _, _, pair in parts], axis=-1),
                # Scales may differ, so they are multiplied in.
                "b": jnp.concatenate([scale * pair["b"] for _, scale, pair in parts], axis=-2),
                "owner": jnp.concatenate(
                    [jnp.full(pair["b"].shape[-2], i, jnp.int32) for i, _, pair in parts]
                ),
            }
        layers.append(joined)
    return Adapter(layers, 1.0)


def for_rows(adapter: Adapter | None, numbers: Int[Array, "B"] | None) -> Adapter | None:
    """An adapter of `join_adapters` where row i has adapter `numbers[i]`; others as they are."""
    if adapter is None or numbers is None or adapter.stacked:
        return adapter

    def masked(pair: dict[str, Array]) -> dict[str, Array]:
        if "owner" not in pair:
            return pair
        own = pair["owner"][None] == numbers[:, None]
        return {"a": pair["a"], "b": pair["b"], "own": own}

    layers = [{t: masked(pair) for t, pair in layer.items()} for layer in adapter.layers]
    return replace(adapter, layers=layers)


def with_dropout(adapter: Adapter, rate: float, key: Array) -> Adapter:
    """The adapter with dropout on its inputs, with probability `rate` and drawn from `key`.

    Keys travel with the pairs as further leaves, so recomputation under remat draws the same.
    """
    stacked = adapter.stacked
    layers = [adapter.layers] if stacked else adapter.layers
    depth = len(jax.tree.leaves(adapter.layers)[0]) if stacked else len(layers)
    keys = jax.random.split(key, (depth, len(layers[0])))
    # One element per layer, like the keys, so that a scan over stacked layers slices both.
    keep = jnp.full((depth,), 1.0 - rate, jnp.float32)
    marked = []
    for i, layer in enumerate(layers):
        at = slice(None) if stacked else i
        draws = [{"key": keys[at, j], "keep": keep[at]} for j in range(len(layer))]
        marked.append(
            {t: pair | draw for (t, pair), draw in zip(layer.items(), draws, strict=True)}
        )
    return replace(adapter, layers=marked[0] if stacked else marked)


def lora_delta(
    x: Float[Array, "B T i"], pair: dict[str, Array], scale: float
) -> Float[Array, "B T o"]:
    """The adapter's contribution to one projection, through the rank: never forms `a @ b`."""
    with jax.named_scope("lora"):
        inner = _project(dropped(x, pair), pair["a"])
        if "own" in pair:
            inner = jnp.where(pair["own"][:, None], inner, jnp.zeros((), x.dtype))
        y = _project(inner, pair["b"])
        return times(y, scale)


def times(x: Float[Array, "*b"], factor: float) -> Float[Array, "*b"]:
    """`factor * x`, rounded once: of a factor rounded to bfloat16 the error would be systematic."""
    return (x.astype(jnp.float32) * jnp.float32(factor)).astype(x.dtype)


def dropped(x: Float[Array, "*b i"], pair: dict[str, Array]) -> Float[Array, "*b i"]:
    """The inputs of a pair after its dropout, if it has one."""
    if "key" not in pair:
        return x
    # Divided by the share that is kept, the mean of an input stays as it is without dropout.
    kept = jax.random.bernoulli(pair["key"], pair["keep"], x.shape)
    return jnp.where(kept, x / pair["keep"].astype(x.dtype), jnp.zeros((), x.dtype))


WIDE = 512
"""Narrower inputs are small to transpose, and keep the order of summation of README's table."""


@jax.custom_vjp
def _project(x: Float[Array, "B T i"], w: Float[Array, "i o"]) -> Float[Array, "B T o"]:
    """`x @ w` in x's dtype, with the gradient of `w` summed in w's own dtype (float32 masters).

    Autodiff would round the gradient of a bfloat16 product to bfloat16 before devices add their
    parts.
    """
    return matmul(x, w.astype(x.dtype))


def _project_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _project(x, w), (x, w)


def _project_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    # A CPU transposes a product's left side, so of two wide ones that is the one with the rank. (It
    # cannot do so in bfloat16, where XLA has no program for that order of the axes.)
    if x.shape[-1] < max(WIDE, dy.shape[-1]) or x.dtype != jnp.float32:
        dw = jnp.einsum("bti,bto->io", x, dy, preferred_element_type=w.dtype)
    else:
        dw = jnp.einsum("bto,bti->oi", dy, x, preferred_element_type=w.dtype).T
    return matmul(dy, w.astype(dy.dtype).T), dw.astype(w.dtype)


_project.defvjp(_project_forward, _project_backward)
