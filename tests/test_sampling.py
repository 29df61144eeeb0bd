"""The sampler against a loop that caches, batches and shares nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from malt_jax.config.lora import LoraConfig
from malt_jax.config.sampler import SamplerConfig
from malt_jax.errors import UserError
from malt_jax.models.decoder import Decoder
from malt_jax.models.lora import init_adapter
from malt_jax.models.spec import ModelSpec, Rope
from malt_jax.sampling.engine import Request, Sampler, Settings
from malt_jax.sampling.filters import draw

SMALL = SamplerConfig(
    rows=4,
    prefix_buckets=(24,),
    new_token_buckets=(16,),
    prefill_tokens=16,
    prefill_lane=4,
    streams=1,
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
DRAWN = Settings(temperature=1.0, max_new_tokens=12, end_ids=ENDS)


@pytest.mark.parametrize(
    ("family", "width"), [(name, 1 + i % 3) for i, name in enumerate(FAMILIES)]
)
def test_same_as_naive_for_every_family(family, width):
    model = make_model(FAMILIES[family])
    requests = make_requests(7, 3)
    drawn = Sampler(model, replace(SMALL, width=width)).sample(requests, DRAWN)
    assert {c.finish for group in drawn for c in group} == {"eos", "length"}
    assert_same(model, requests, DRAWN, drawn)


def test_a_prompt_beyond_the_largest_bucket_is_served_in_its_double(model):
    request = Request(tuple(range(1, 31)), np.arange(4, dtype=np.uint32).reshape(2, 2))
    how = replace(DRAWN, max_new_tokens=10)
    assert SMALL.prefix_buckets == (24,)
    assert_same(model, [request], how, Sampler(model, SMALL).sample([request], how))


@pytest.fixture(scope="module")
def sampler(model):
    return Sampler(model, SMALL)


SETTINGS = {
    "greedy": Settings(temperature=0.0, max_new_tokens=6),
    "top-k": Settings(temperature=1.3, top_k=5, max_new_tokens=10, end_ids=ENDS),
    "top-p": Settings(temperature=1.3, top_p=0.6, max_new_tokens=10, end_ids=ENDS),
    "both": Settings(temperature=2.0, top_k=9, top_p=0.7, max_new_tokens=16, end_ids=ENDS),
    "one token": Settings(temperature=1.0, max_new_tokens=1),
    "stop text": Settings(temperature=1.0, max_new_tokens=14, stop=("F", "zz", "HI"), end_ids=(3,)),
}


def test_any_settings_equal_the_naive_loop_and_compile_nothing_new(model, sampler):
    requests = make_requests(9, 2, seed=1)
    sampler.sample(requests, DRAWN)
    before = sampler.stats.executables
    for settings in SETTINGS.values():
        assert_same(model, requests[:4], settings, sampler.sample(requests, settings)[:4])
    assert sampler.stats.executables == before


def test_programs_are_known_before_the_run(model):
    """`3 r - 1 + s (1 + t)`: r rungs of rows, s numbers of slots, t sizes of prefill calls."""
    sampler = Sampler(model, replace(SMALL, rows=16))
    shapes = [(s.rows, s.slots, s.width) for s in sampler.ladder(20, 12, siblings=3)]
    assert shapes == [(4, 4, 3), (8, 8, 3), (16, 8, 3)]
    known = 3 * 3 - 1 + 2 * (1 + 2)
    assert sampler.warm_up(20, 12, siblings=3) == known
    for count, n in ((1, 3), (3, 3), (30, 3)):
        requests = make_requests(count, n, seed=count)
        drawn = sampler.sample(requests, DRAWN)
        assert_same(model, requests[:2], DRAWN, drawn[:2])
    assert sampler.stats.executables == known


def test_order_and_company_of_requests_change_nothing(model, sampler):
    requests = make_requests(12, 3, seed=2)
    order = np.random.default_rng(0).permutation(12)
    drawn = sampler.sample(requests, DRAWN)
    shuffled = sampler.sample([requests[i] for i in order], DRAWN)
    for place, i in enumerate(order):
        assert [c.tokens for c in shuffled[place]] == [c.tokens for c in drawn[i]]
        for mine, other in zip(shuffled[place], drawn[i], strict=True):
            np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-5)


def test_streams_side_by_side_draw_what_one_does(model):
    sampler = Sampler(model, replace(SMALL, rows=8, streams=2))
    sampler._best_rows = 8  # enough work for two
    requests = make_requests(17, 3, seed=6)
    for settings in (DRAWN, SETTINGS["stop text"]):
        assert_same(model, requests, settings, sampler.sample(requests, settings))
    assert sampler.stats.tokens_generated == sampler.stats.row_steps_useful
    assert sampler.stats.completions == 2 * 17 * 3


def test_a_stream_that_fails_ends_the_others(model, monkeypatch):
    sampler = Sampler(model, replace(SMALL, rows=8, streams=2))
    sampler._best_rows = 8
    run, steps = sampler._run, []

    def fail_first(requests, *rest):
        if not steps:
            steps.append(0)
            raise UserError("no")
        return run(requests, *rest)

    monkeypatch.setattr(sampler, "_run", fail_first)
    with pytest.raises(UserError, match="no"):
        sampler.sample(make_requests(17, 3, seed=6), DRAWN)


def test_many_completions_of_few_prompts_and_of_one_token(model, sampler):
    requests = [*make_requests(2, 11, seed=3), Request((5,), make_requests(1, 2)[0].keys)]
    assert_same(model, requests, DRAWN, sampler.sample(requests, DRAWN))
    assert sampler.sample([Request((5,), np.zeros((0, 2), np.uint32))], DRAWN) == [[]]


def test_every_new_token_is_passed_on_once(sampler):
    requests = make_requests(6, 3, seed=4)
    seen = {}
    hook = lambda i, j, new: seen.setdefault((i, j), []).extend(new)  # noqa: E731
    drawn = sampler.sample(requests, SETTINGS["stop text"], on_tokens=hook)
    for (i, j), tokens in seen.items():
        assert tuple(tokens) == drawn[i][j].tokens


def test_adapters_switch_without_compiling_and_act_as_in_the_naive_loop(model):
    sampler = Sampler(model, SMALL)
    requests = make_requests(4, 2, seed=5)
    config = LoraConfig(rank=2, alpha=4.0)
    counts = []
    for seed in range(2):
        adapter = init_adapter(model.spec, config, jax.random.key(seed))
        leaves, tree = jax.tree.flatten(adapter)
        keys = jax.random.split(jax.random.key(seed + 10), len(leaves))
        leaves = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        adapter = jax.tree.unflatten(tree, leaves)
        drawn = sampler.sample(requests, DRAWN, adapter=adapter)
        assert_same(model, requests, DRAWN, drawn, adapter)
        counts.append(sampler.stats.executables)
    assert counts[0] == counts[1]


def test_broken_weights_are_named(model):
    params = jax.tree.map(lambda x: x * np.float32("nan"), model.params)
    broken = SimpleNamespace(**{**vars(model), "params": params})
    with pytest.raises(UserError, match="NaN"):
        Sampler(broken, SMALL).sample(make_requests(2, 1), DRAWN)


@pytest.mark.parametrize("what", ["cache", "weights"])
def test_int8_is_close_to_exact(model, what):
    """One token a completion: later ones would compare log-probabilities of different texts."""
    requests = make_requests(16, 3, seed=6)
    how = Settings(temperature=1.0, max_new_tokens=1)
    exact = Sampler(model, SMALL).sample(requests, how)
    rounded = Sampler(model, replace(SMALL, **{what: "int8"})).sample(requests, how)
    pairs = [pair for groups in zip(exact, rounded, strict=True) for pair in zip(*groups)]  # noqa: B905
    gaps = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in pairs if a.tokens == b.tokens]
    assert len(gaps) >= 0.9 * len(pairs)
    assert 0 < max(gaps) < 0.2


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), np.zeros((1, 2), np.uint32)), "empty"),
        (Request((1,) * 60, np.zeros((1, 2), np.uint32)), "context of 64"),
        (Request((61,), np.zeros((1, 2), np.uint32)), "vocabulary"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(sampler, request_, message):
    with pytest.raises(UserError, match=message):
        sampler.sample([request_], DRAWN)
