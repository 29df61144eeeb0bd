"""Loads a checkpoint's tensors as sharded device arrays, one tensor at a time.

Each process reads only the slices that its devices hold. Host memory peaks at the needs of one
tensor: its local slices as stored, and the same in the target dtype. With stacked layers, each
layer's part is written into the (donated) stack as it arrives, so nothing is held twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from malt_jax.errors import UserError
from malt_jax.models import sharding
from malt_jax.models.checkpoint import HEAD, Checkpoint
from malt_jax.models.decoder import Decoder
from malt_jax.models.hf_names import EMBEDDING, Source, source_of
from malt_jax.models.quantized import TABLES, is_quantized, quantized
from malt_jax.models.spec import ModelSpec

Rules = Mapping[str, tuple[str, ...]]


def abstract_params(
    spec: ModelSpec, dtype: Any, stacked: bool, quantize: str = "none"
) -> tuple[nnx.GraphDef, nnx.State]:
    """The decoder's structure with shapes in place of arrays.

    `quantize`: "none", "int8", or "kernels" for those alone, as in `with_int8_kernels`.
    """
    # Traced and never computed, so that even the largest model's structure takes no memory.
    decoder = nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0), dtype=dtype, stacked=stacked))
    graph, params = nnx.split(decoder, nnx.Param)
    if quantize == "none":
        return graph, params
    flat: dict[Any, Any] = dict(nnx.to_flat_state(params))
    for path, variable in flat.items():
        if is_quantized(path) and (quantize == "int8" or path not in TABLES):
            matrix = jax.eval_shape(partial(quantized, path), variable.get_value())
            flat[path] = variable.replace(matrix)
    return graph, nnx.from_flat_state(flat)


def weight_bytes(spec: ModelSpec, dtype: Any, quantize: str) -> int:
    """Bytes of all parameters, wherever they lie."""
    # Stacked, because one layer is traced in place of all; the number is the same.
    _, params = abstract_params(spec, dtype, stacked=True, quantize=quantize)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def layout(
    variable: nnx.Variable, source: Source, mesh: sharding.AnyMesh | None, rules: Rules
) -> Any:
    """The sharding of a parameter: its declared axes laid over the mesh, or the default device.

    Of a quantised one, that of its integers and that of its scales.
    """
    axes = variable.get_metadata()["axes"]
    # The layer axis is never split: a scan works on one layer at a time.
    axes = (None, *axes) if source.stacked else axes

    def of(leaf: Any) -> Sharding:
        if mesh is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        # Scales have a size of 1 where a product sums, which stays whole.
        return sharding.named(axes, leaf.shape, mesh, rules)

    return jax.tree.map(of, variable.get_value())


def load_params(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    dtype: Any,
    *,
    mesh: Mesh | None = None,
    rules: Rules = sharding.RULES,
    stacked: bool = False,
    quantize: str = "none",
) -> tuple[nnx.GraphDef, nnx.State]:
    """The decoder's structure and parameters; names, shapes and finite values are checked.

    With `quantize` (see `ModelConfig`) each matrix is rounded as soon as it is on the devices, so
    that no more than one of them is there in full.
    """
    # 1. From headers alone: the names and shapes that config.json promises. A wrong checkpoint is
    # refused before any weight is read.
    graph, abstract = abstract_params(spec, dtype, stacked)
    flat = dict(nnx.to_flat_state(abstract))
    sources = {path: source_of(spec, path) for path in flat}
    if spec.tied and EMBEDDING not in checkpoint.names and HEAD in checkpoint.names:
        # The one matrix under its other name.
        sources[("embed",)] = replace(sources[("embed",)], names=(HEAD,))
    _check_names(checkpoint, spec, sources)
    for path, variable in flat.items():
        _check_shapes(checkpoint, sources[path], variable.get_value().shape)
    # Some checkpoints store a tied model's head as well. To ignore one that differs would load
    # another model than the file holds.
    if spec.tied and {HEAD, EMBEDDING} <= checkpoint.names:
        _check_tied_head(checkpoint)
    # 2. Each parameter is read and placed; whether it is finite is computed on the device.
    loaded, finite = {}, {}
    for path, variable in flat.items():
        source, shape = sources[path], variable.get_value().shape
        where = layout(variable, source, mesh, rules)
        fetch = partial(_fetch, checkpoint, shape, where, dtype, source)
        array, flags = fetch()
        finite.update(flags)
        loaded[path] = variable.replace(array)
        if quantize != "none" and is_quantized(path):
            loaded[path] = _quantized(path, loaded[path], source, mesh, rules)
    # 3. The flags are read only now, since each read waits for the device.
    for name, flag in finite.items():
        if not np.asarray(flag):
            raise UserError(
                f"{checkpoint.place(name)} holds NaN or infinity; download the checkpoint again, "
                "or choose another."
            )
    return graph, nnx.from_flat_state(loaded)


def _quantized(
    path: Any, variable: nnx.Variable, source: Source, mesh: Mesh | None, rules: Rules
) -> nnx.Variable:
    """A matrix rounded where it lies, its scales split like its output channels."""
    function, array = partial(quantized, path), variable.get_value()
    where = layout(variable.replace(jax.eval_shape(function, array)), source, mesh, rules)
    return variable.replace(jax.jit(function, out_shardings=where)(array))


def _fetch(
    checkpoint: Checkpoint, shape: tuple[int, ...], where: Sharding, dtype: Any, source: Source
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One parameter's array, and for each of its layers whether all values are finite."""
    if not source.stacked:
        array = _read(checkpoint, shape, where, dtype, source)
        return array, {source.names[0]: _all_finite(array)}
    stack = jnp.zeros(shape, dtype, device=where)
    part_where = _without_leading_axis(where)
    flags = {}
    for i in range(shape[0]):
        layer = source.layer(i)
        part = _read(checkpoint, shape[1:], part_where, dtype, layer)
        flags[layer.names[0]] = _all_finite(part)
        stack = _put_layer(stack, part, i)
    return stack, flags


def _read(
    checkpoint: Checkpoint, shape: tuple[int, ...], where: Sharding, dtype: Any, source: Source
) -> jax.Array:
    seen: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def matrix(name: str, index: tuple[slice, ...]) -> np.ndarray:
        # A slice of the transpose is the transpose of the slice with its indices swapped, so a
        # transposed tensor, too, is read in parts.
        stored = checkpoint.read(name, source.place(index, shape[-len(index) :]))
        return (stored.T if source.transposed else stored).astype(dtype, copy=False)

    def values(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        # Devices that hold the same slice share one read.
        key = tuple(one.indices(size) for one, size in zip(index, shape, strict=True))
        if key not in seen:
            if source.experts:
                names = source.names[index[0]]
                seen[key] = np.stack([matrix(name, index[1:]) for name in names])
            else:
                seen[key] = np.ascontiguousarray(matrix(source.names[0], index))
        return seen[key]

    return jax.make_array_from_callback(shape, where, values)


def _without_leading_axis(where: Sharding) -> Sharding:
    if isinstance(where, jax.sharding.NamedSharding):
        return where.update(spec=jax.sharding.PartitionSpec(*where.spec[1:]))
    return where


# The layer is traced and not static: one compiled program places all layers.
@partial(jax.jit, donate_argnums=0)
def _put_layer(stack: jax.Array, part: jax.Array, layer: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, part, layer, axis=0)


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def _check_names(checkpoint: Checkpoint, spec: ModelSpec, sources: Mapping[Any, Source]) -> None:
    expected = {name for source in sources.values() for name in source.names}
    missing = sorted(expected - checkpoint.names)
    if missing == [HEAD]:
        raise UserError(
            f"{checkpoint.folder}: {HEAD} is missing, which this {spec.family} model needs since "
            "tie_word_embeddings is false in config.json or left out; set it to true there if the "
            "model's head is its embedding, else download the checkpoint again."
        )
    if missing:
        raise UserError(
            f"{checkpoint.folder}: {len(missing)} tensors of this {spec.family} model are missing, "
            f"first {missing[0]}; download the checkpoint again."
        )
    extra = sorted(checkpoint.names - expected - ({HEAD} if spec.tied else set()))
    if extra:
        raise UserError(
            f"{checkpoint.place(extra[0])} is no part of the {spec.family} model that config.json "
            f"describes ({len(extra)} such tensors); config and weights do not belong together."
        )


def _check_shapes(checkpoint: Checkpoint, source: Source, shape: tuple[int, ...]) -> None:
    expected = source.stored_shape(shape)
    for name in source.names:
        found = checkpoint.shape(name)
        if found != expected:
            raise UserError(
                f"{checkpoint.place(name)} has shape {list(found)}, config.json wants "
                f"{list(expected)}; config and weights do not belong together."
            )


def _check_tied_head(checkpoint: Checkpoint) -> None:
    same = checkpoint.shape(HEAD) == checkpoint.shape(EMBEDDING) and all(
        np.array_equal(a, b)
        for a, b in zip(checkpoint.blocks(HEAD), checkpoint.blocks(EMBEDDING), strict=True)
    )
    if not same:
        raise UserError(
            f"{checkpoint.place(HEAD)} differs from the embedding, though config.json ties them; "
            "set tie_word_embeddings to false in config.json if the head is meant."
        )
