"""A random decoder of a few thousand parameters, and random examples for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from malt_jax.config.training import PgConfig
from malt_jax.data.examples import DpoExample, PolicyExample, SftExample, UnpairedExample
from malt_jax.models.decoder import Decoder
from malt_jax.models.spec import ModelSpec, Rope
from malt_jax.training.phase import Phase

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


def kto_examples(count: int, seed: int = 0) -> list[UnpairedExample]:
    """Two desirable completions to one that is not."""
    return [
        UnpairedExample(
            e.prompt_ids, e.completion_ids, e.node_id, i % 3 > 0, question_id=e.question_id
        )
        for i, e in enumerate(sft_examples(count, seed))
    ]


def policy_examples(model: TinyModel, policy: Any, count: int, seed: int = 0):
    """Pairs of siblings with opposite advantages and the policy's own log-probabilities."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count // 2):
        prompt = ids(rng, rng.integers(3, 12))
        for j in range(2):
            completion = ids(rng, rng.integers(2, 12))
            examples.append(
                PolicyExample(
                    prompt,
                    completion,
                    logprobs=(0.0,) * len(completion),
                    advantage=1.0 - 2.0 * j,
                    node_id=f"Q{i}/g{j}",
                    question_id=f"Q{i}",
                )
            )
    phase = Phase(model, policy, examples, PgConfig())
    found = phase.score_tokens(policy, phase.every_example)
    parts = np.split(found, np.cumsum([len(e.completion_ids) for e in examples])[:-1])
    return [
        replace(e, logprobs=tuple(part.tolist())) for e, part in zip(examples, parts, strict=True)
    ]
