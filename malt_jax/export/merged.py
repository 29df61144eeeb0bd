"""One role as a Hugging Face checkpoint of its own: the base with the adapter added in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from malt_jax.export.safetensors_writer import Stored, write_checkpoint
from malt_jax.models.checkpoint import TOKENIZER_FILES
from malt_jax.models.hf_config import read_json
from malt_jax.models.hf_names import source_of
from malt_jax.models.lora import Adapter
from malt_jax.models.sharding import to_host
from malt_jax.models.spec import ModelSpec

GENERATION = "generation_config.json"


def write_merged(
    folder: Path,
    base: Path,
    spec: ModelSpec,
    params: nnx.State,
    adapter: Adapter | None,
    shard_bytes: int,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Weights in the parameters' dtype, one tensor on the host at a time; config and tokenizer.

    `generation`: what generation_config.json holds; None: what the base's does.
    Every process must call it, since weights may be spread over them; process 0 writes.
    """
    flat = {path: variable.get_value() for path, variable in nnx.to_flat_state(params)}
    where = {}
    for path in flat:
        source = source_of(spec, path)
        for layer, name in enumerate(source.names):
            where[name] = (path, layer if source.stacked else None, source.transposed)
    tensors = {name: _stored(flat[path], *rest) for name, (path, *rest) in where.items()}

    def produce(name: str) -> np.ndarray:
        path, layer, transposed = where[name]
        value = flat[path] if layer is None else flat[path][layer]
        pair = None if adapter is None else adapter_pair(adapter, path, layer)
        if pair is not None:
            value = _add_update(value, pair["a"], pair["b"], adapter.scale)
        value = to_host(value)
        return value.T if transposed else value

    if jax.process_index() != 0:
        for name in tensors:
            produce(name)
        return
    write_checkpoint(folder, tensors, produce, shard_bytes)
    _write_config(folder, base, next(iter(tensors.values())).dtype)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if generation is not None:
        write_json(folder / GENERATION, generation)


def adapter_pair(
    adapter: Adapter, path: tuple[str | int, ...], layer: int | None = None
) -> Mapping[str, jax.Array] | None:
    """The adapter's factors for the kernel at `path`, or None; `layer` where layers are stacked."""
    if path[0] != "layers" or path[-1] != "kernel":
        return None
    index = path[1] if layer is None else layer
    if adapter.stacked:
        pair = adapter.layers.get(path[-2])
        return None if pair is None else {side: x[index] for side, x in pair.items()}
    return adapter.layers[index].get(path[-2])


@partial(jax.jit, static_argnames="scale")
def _add_update(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """`kernel + scale * a @ b`, summed in true float32, in the kernel's dtype."""
    update = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)


def _stored(value: jax.Array, layer: int | None, transposed: bool) -> Stored:
    shape = value.shape if layer is None else value.shape[1:]
    return Stored(shape[::-1] if transposed else shape, np.dtype(value.dtype))


def _write_config(folder: Path, base: Path, dtype: np.dtype) -> None:
    config: dict[str, Any] = read_json(base / "config.json")
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype.name
    write_json(folder / "config.json", config)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
