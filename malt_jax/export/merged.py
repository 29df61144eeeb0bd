"""One role as a Hugging Face checkpoint of its own: the base model with the adapter added in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from malt_jax.export.safetensors_writer import Stored, write_checkpoint, write_config
from malt_jax.models.checkpoint import TOKENIZER_FILES
from malt_jax.models.hf_families import FAMILIES
from malt_jax.models.hf_fields import read_json
from malt_jax.models.hf_names import Source, source_of
from malt_jax.models.lora import Adapter
from malt_jax.models.quantized import dequantized
from malt_jax.models.sharding import to_host
from malt_jax.models.spec import ModelSpec
from malt_jax.models.tokenizer_files import read_chat_template


class Piece(NamedTuple):
    """A parameter, or a layer's or expert's part of it, that belongs to a tensor of the file."""

    path: tuple[Any, ...]
    layer: int | None
    expert: int | None
    source: Source


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
    # Name in the checkpoint -> the parameters, or parts of them, that make up the tensor.
    pieces: dict[str, list[Piece]] = {}
    tensors = {}
    for path, value in flat.items():
        source = source_of(spec, path)
        # A stacked array has the layers as its first axis, and the experts of a mixture are one
        # array; the file may have one tensor for each.
        count = max(source.experts, 1)
        for i, name in enumerate(source.names):
            layer = i // count if source.stacked else None
            expert = i % count if source.experts else None
            pieces.setdefault(name, []).append(Piece(path, layer, expert, source))
            tensors[name] = Stored(source.stored_shape(value.shape), dtype)

    def matrix(piece: Piece) -> np.ndarray:
        value = flat[piece.path]
        pair = None if adapter is None else adapter_pair(adapter, piece.path, piece.layer)
        for index in (piece.layer, piece.expert):
            value = value if index is None else value[index]
        # A quantised base is written as what its integers stand for, since that is what the adapter
        # was trained over.
        value = dequantized(value, jnp.float32)
        if adapter is not None and pair is not None:
            a, b = (
                pair[side] if piece.expert is None else pair[side][piece.expert] for side in "ab"
            )
            value = _add_update(value, a, b, adapter.scale)
        # Cast on the device, so that a 16-bit model does not cross to the host as float32.
        value = to_host(value.astype(dtype))
        return value.T if piece.source.transposed else value

    def produce(name: str) -> np.ndarray:
        first, *others = pieces[name]
        if first.source.part is None:
            return matrix(first)
        whole = np.empty(tensors[name].shape, dtype)
        for piece in (first, *others):
            value = matrix(piece)
            shape = value.shape[::-1] if piece.source.transposed else value.shape
            whole[piece.source.place((slice(None),) * value.ndim, shape)] = value
        return whole

    if jax.process_index() != 0:
        # Weights may be spread over all processes, so each must help to gather every tensor, in the
        # same order as process 0.
        for name in tensors:
            produce(name)
        return
    write_checkpoint(folder, tensors, produce, shard_bytes)
    write_config(folder / "config.json", _config(read_json(base / "config.json"), spec, dtype))
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    template = read_chat_template(base)
    if template is not None and template.file.name == "chat_template.json":
        # That file is for a multimodal checkpoint's processor, which the text model has none of.
        (folder / "chat_template.jinja").write_text(template.text, encoding="utf-8")


def _config(config: dict[str, Any], spec: ModelSpec, dtype: np.dtype) -> dict[str, Any]:
    """The base model's config.json as that of what is written."""
    if spec.tower:
        # The exported model is the text model on its own.
        config = {**config["text_config"], "model_type": spec.family}
        config["architectures"] = [FAMILIES[spec.family].architecture]
        config["tie_word_embeddings"] = spec.tied
    # Weights are written unquantised, and no code is shipped with them.
    for key in ("quantization_config", "auto_map"):
        config.pop(key, None)
    # transformers has two names for this field; the base model's own spelling is kept.
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype.name
    return config


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
