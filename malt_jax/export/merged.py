"""One role as a Hugging Face checkpoint of its own: the base model with the adapter added in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from malt_jax.export.safetensors_writer import Stored, write_checkpoint, write_config
from malt_jax.models.checkpoint import TOKENIZER_FILES
from malt_jax.models.hf_config import read_json
from malt_jax.models.hf_names import source_of
from malt_jax.models.lora import Adapter
from malt_jax.models.sharding import to_host
from malt_jax.models.spec import ModelSpec


def write_merged(
    folder: Path,
    base: Path,
    spec: ModelSpec,
    params: nnx.State,
    adapter: Adapter | None,
    dtype: Any,
    shard_bytes: int,
) -> None:
    """Writes weights in `dtype`, config.json and the tokenizer files of the folder `base`.

    `params` may have another dtype: full fine-tuning keeps float32 weights for a bfloat16 model.
    One tensor at a time is on the host. Every process must call this, since weights may be spread
    over all of them; process 0 writes.
    """
    dtype = np.dtype(dtype)
    flat: dict[tuple[Any, ...], Any] = {
        path: variable.get_value() for path, variable in nnx.to_flat_state(params)
    }
    # Name in the checkpoint -> path, layer (None where layers are not stacked), transposed or not.
    where = {}
    tensors = {}
    for path, value in flat.items():
        source = source_of(spec, path)
        # A stacked array has the layers as its first axis; the file has one tensor per layer.
        shape = value.shape[1:] if source.stacked else value.shape
        for layer, name in enumerate(source.names):
            where[name] = (path, layer if source.stacked else None, source.transposed)
            tensors[name] = Stored(shape[::-1] if source.transposed else shape, dtype)

    def produce(name: str) -> np.ndarray:
        path, layer, transposed = where[name]
        value = flat[path] if layer is None else flat[path][layer]
        pair = None if adapter is None else adapter_pair(adapter, path, layer)
        if adapter is not None and pair is not None:
            value = _add_update(value, pair["a"], pair["b"], adapter.scale)
        # Cast on the device, so that a 16-bit model does not cross to the host as float32.
        value = to_host(value.astype(dtype))
        return value.T if transposed else value

    if jax.process_index() != 0:
        # Weights may be spread over all processes, so each must help to gather every tensor, in the
        # same order as process 0.
        for name in tensors:
            produce(name)
        return
    write_checkpoint(folder, tensors, produce, shard_bytes)
    config: dict[str, Any] = read_json(base / "config.json")
    # transformers has two names for this field; the base model's own spelling is kept.
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype.name
    write_config(folder / "config.json", config)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


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
    """`kernel + scale * a @ b`, computed in float32 and rounded once, to the kernel's dtype."""
    # Precision.HIGHEST: TPUs and GPUs otherwise multiply float32 in fewer bits.
    update = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
