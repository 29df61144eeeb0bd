"""Loads a Hugging Face checkpoint: the decoder's structure, its parameters, the tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from malt_jax.errors import UserError
from malt_jax.hashing import fingerprint
from malt_jax.models import sharding
from malt_jax.models.checkpoint import Checkpoint
from malt_jax.models.hf_config import read_spec
from malt_jax.models.hub import local_folder
from malt_jax.models.quantized import weights_dtype
from malt_jax.models.spec import ModelSpec
from malt_jax.models.tokenizer import Tokenizer, load_tokenizer
from malt_jax.models.weights import load_params

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Model:
    """A decoder and its tokenizer. Inside jit: `nnx.merge(model.graph, params)`."""

    spec: ModelSpec
    graph: nnx.GraphDef
    params: nnx.State
    tokenizer: Tokenizer
    path: str
    """The folder or hub name that was given."""
    revision: str | None
    """The hub's commit, if it came from there."""
    fingerprint: str
    """SHA-256 over weights, config, tokenizer and chat template."""

    @property
    def folder(self) -> Path:
        """The folder of its files on this machine."""
        return self.tokenizer.folder

    @property
    def dtype(self) -> Any:
        """The dtype of its activations, and of its weights unless they are rounded."""
        return weights_dtype(self.params)

    def __call__(self, tokens: Int[Array, "B T"] | Int[np.ndarray, "B T"]) -> Float[Array, "B T V"]:
        """Float32 logits of whole sequences, without padding."""
        return _logits(self.graph, self.params, jnp.asarray(tokens, jnp.int32))


# The parameters are an argument and no closure, which would make them constants of the program.
@partial(jax.jit, static_argnums=0)
def _logits(graph: nnx.GraphDef, params: nnx.State, tokens: Array) -> Array:
    return nnx.merge(graph, params)(tokens)


def load_model(
    path: str | os.PathLike,
    dtype: Any = None,
    mesh: Mesh | None = None,
    stacked: bool | None = None,
    *,
    revision: str | None = None,
    rules: Mapping[str, tuple[str, ...]] = sharding.RULES,
    quantize: str = "none",
) -> Model:
    """Read a Hugging Face checkpoint: a local folder, or a name on the hub (`org/name`).

    `dtype`: "float32" or "bfloat16"; default float32 on a CPU and bfloat16 elsewhere. `mesh`: the
    weights are laid over it by `rules`; default one device. `stacked`: one array per parameter with
    a leading layer axis in place of one per layer; default `ModelSpec.stacks_layers`. `quantize`:
    "int8" for a base that stays frozen (see `ModelConfig`). Anything about the checkpoint that is
    wrong or not supported raises UserError, before a weight is read if config.json shows it.
    """
    # From cheap to expensive: config.json refuses a model that is not supported, the files' headers
    # show what is missing, and only then are weights read.
    folder, revision = local_folder(path, revision)
    spec = read_spec(folder)
    checkpoint = Checkpoint(folder, tower=spec.tower)
    tokenizer = load_tokenizer(folder, spec.vocab)
    graph, params = load_params(
        checkpoint,
        spec,
        _dtype(dtype),
        mesh=mesh,
        rules=rules,
        stacked=spec.stacks_layers if stacked is None else stacked,
        quantize=quantize,
    )
    # Over contents and not over names, so that a copy elsewhere, or a commit that changes other
    # files only, counts as the same model.
    print_of_files = fingerprint([*checkpoint.files, *tokenizer.files, folder / "config.json"])
    return Model(spec, graph, params, tokenizer, os.fspath(path), revision, print_of_files)


def _dtype(dtype: Any) -> Any:
    if dtype is None:
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: expected {' or '.join(DTYPES)}.")
    return DTYPES[name]
