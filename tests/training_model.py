"""A random decoder of a few thousand parameters, and random examples for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from malt_jax.data.examples import DpoExample, SftExample
from malt_jax.models.decoder import Decoder
from malt_jax.models.spec import ModelSpec, Rope

SPEC = ModelSpec(
    family="llama",
    vocab=48,
    d_model=32,
    num_layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    d_mlp=64,
    context=256,
    rope=Rope(10_000.0),
    tied=True,
    query_scale=8**-0.5,
)


@dataclass(frozen=True)
class TinyModel:
    spec: ModelSpec
    graph: nnx.GraphDef
    params: nnx.State
    fingerprint: str = "tiny"


def tiny_model(spec: ModelSpec = SPEC, *, stacked: bool = True, dtype: Any = jnp.float32):
    graph, params = nnx.split(Decoder(spec, rngs=nnx.Rngs(0), stacked=stacked, dtype=dtype))
    return TinyModel(spec, graph, params)


def ids(rng: np.random.Generator, length: int, vocab: int = SPEC.vocab) -> tuple[int, ...]:
    return tuple(rng.integers(1, vocab, length).tolist())


def sft_examples(count: int, seed: int = 0, role: str = "") -> list[SftExample]:
    rng = np.random.default_rng(seed)
    return [
        SftExample(
            ids(rng, rng.integers(3, 12)),
            ids(rng, rng.integers(2, 12)),
            f"{role}{i}",
            role,
            f"Q{i}",
        )
        for i in range(count)
    ]


def dpo_examples(count: int, seed: int = 0) -> list[DpoExample]:
    rng = np.random.default_rng(seed)
    return [
        DpoExample(
            ids(rng, rng.integers(3, 12)),
            ids(rng, rng.integers(2, 12)),
            ids(rng, rng.integers(2, 12)),
            f"chosen{i}",
            f"rejected{i}",
            question_id=f"Q{i}",
        )
        for i in range(count)
    ]
