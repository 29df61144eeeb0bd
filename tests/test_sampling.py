"""The sampler against a loop that caches, batches and shares nothing."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from malt_jax.errors import UserError
from malt_jax.models.decoder import Decoder
from malt_jax.models.spec import ModelSpec, Rope
from malt_jax.sampling.config import SamplerConfig
from malt_jax.sampling.engine import Request, Sampler, Settings
from malt_jax.sampling.filters import draw

SMALL = SamplerConfig(
    slots=4,
    prefix_buckets=(24,),
    new_token_buckets=(16,),
    prefill_buckets=(4, 8),
    prefill_tokens=16,
    chunk_steps=5,
    cache_dir=None,
)


def spec(**changes) -> ModelSpec:
    fields = dict(
        family="test",
        vocab=61,
        d_model=16,
        num_layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        d_mlp=24,
        context=64,
        rope=Rope(10000.0),
        query_scale=8**-0.5,
    )
    return ModelSpec(**{**fields, **changes})


FAMILIES = {
    "llama, tied": spec(tied=True),
    "qwen2, biases": spec(qkv_bias=True),
    "qwen3, qk norm": spec(qk_norm=True, heads=6, kv_heads=3),
    "windows": spec(windows=(4, None), local_rope=Rope(500.0), num_layers=2),
    "gemma2": spec(
        windows=(5, None),
        attention_softcap=3.0,
        logit_softcap=5.0,
        norm_plus_one=True,
        sandwich_norms=True,
        activation="gelu_tanh",
        embed_scale=4.0,
        tied=True,
    ),
    "one kv head": spec(kv_heads=1),
}


class Letters:
    """A tokenizer whose token i is one character."""

    def decode(self, ids) -> str:
        return "".join(chr(65 + int(i)) for i in ids)


def make_model(model_spec: ModelSpec, seed: int = 0):
    decoder = Decoder(model_spec, rngs=nnx.Rngs(seed))
    # Sharper than an untrained model: long and short completions, and choices that matter.
    decoder.embed[...] = decoder.embed[...] * 4
    if decoder.head is not None:
        decoder.head[...] = decoder.head[...] * 4
    graph, params = nnx.split(decoder)
    return SimpleNamespace(spec=model_spec, graph=graph, params=params, tokenizer=Letters())


@pytest.fixture(scope="module")
def model():
    return make_model(spec())


def make_requests(count: int, n: int, seed: int = 0, vocab: int = 61) -> list[Request]:
    rng = np.random.default_rng(seed)
    head = tuple(rng.integers(0, vocab, 6).tolist())
    requests = []
    for i in range(count):
        tail = tuple(rng.integers(0, vocab, rng.integers(1, 15)).tolist())
        keys = rng.integers(0, 2**32, (n, 2), dtype=np.uint32)
        requests.append(Request(prompt=head[: i % 7] + tail, keys=keys))
    return requests


@partial(jax.jit, static_argnums=0)
def logits_of(graph, params, tokens, adapter):
    return nnx.merge(graph, params)(tokens, adapter=adapter)[0]


draw_one = jax.jit(draw)


def naive(model, request: Request, settings: Settings, adapter=None, length: int = 40):
    """Completions one by one, each token from a full forward pass over all before it."""

    results = []
    for key in request.keys:
        tokens, drawn, logprobs, finish = list(request.prompt), [], [], None
        while finish is None:
            padded = np.zeros((1, length), np.int32)
            padded[0, : len(tokens)] = tokens
            row = logits_of(model.graph, model.params, padded, adapter)[len(tokens) - 1][None]
            choice = draw_one(
                row,
                key[None],
                np.array([len(drawn)], np.int32),
                np.array([settings.temperature], np.float32),
                np.array([settings.top_k], np.int32),
                np.array([settings.top_p], np.float32),
            )
            token = int(choice.token[0])
            tokens.append(token)
            drawn.append(token)
            logprobs.append(float(jax.nn.log_softmax(row[0])[token]))
            text = model.tokenizer.decode(drawn)
            if token in settings.end_ids:
                finish = "eos"
            elif any(stop in text for stop in settings.stop):
                finish = "stop"
            elif len(drawn) == settings.max_new_tokens:
                finish = "length"
        results.append((tuple(drawn), logprobs, finish))
    return results


def assert_same(model, requests, settings, drawn, adapter=None):
    for request, completions in zip(requests, drawn, strict=True):
        expected = naive(model, request, settings, adapter)
        assert len(completions) == len(expected)
        for completion, (tokens, logprobs, finish) in zip(completions, expected, strict=True):
            assert completion.tokens == tokens
            assert completion.finish == finish
            np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)


ENDS = tuple(range(8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [1, 2])
def test_same_as_naive_for_every_family(family, width):
    model = make_model(FAMILIES[family])
    requests = make_requests(7, 3)
    settings = Settings(temperature=1.0, max_new_tokens=12, end_ids=ENDS)
    config = SamplerConfig(**{**vars(SMALL), "width": width})
    drawn = Sampler(model, config).sample(requests, settings)
    finishes = {c.finish for group in drawn for c in group}
    assert finishes == {"eos", "length"}
    assert_same(model, requests, settings, drawn)
