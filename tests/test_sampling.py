"""The sampler against the plain one, which caches, batches and shares nothing.

Every family first; the invariances are those of one of them, compiled as in a user's run.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from malt_jax.config.lora import LoraConfig
from malt_jax.config.sampler import SamplerConfig
from malt_jax.errors import UserError
from malt_jax.models.decoder import Decoder
from malt_jax.models.lora import init_adapter
from malt_jax.models.quantized import weights_dtype
from malt_jax.models.spec import ModelSpec, Rope
from malt_jax.sampling import reference
from malt_jax.sampling.memory import cache_dtype
from malt_jax.sampling.request import Policy, Request, SamplingParams
from malt_jax.sampling.sampler import Sampler

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
        post_norms=True,
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


def make_model(model_spec: ModelSpec, seed: int = 0, stacked: bool = False):
    decoder = Decoder(model_spec, rngs=nnx.Rngs(seed), stacked=stacked)
    # Sharper than an untrained model: long and short completions, and choices that matter.
    decoder.embed[...] = decoder.embed[...] * 4
    if decoder.head is not None:
        decoder.head[...] = decoder.head[...] * 4
    graph, params = nnx.split(decoder)
    return SimpleNamespace(
        spec=model_spec,
        graph=graph,
        params=params,
        dtype=weights_dtype(params),
        tokenizer=Letters(),
    )


@pytest.fixture(scope="module")
def model(optimized):
    return make_model(spec())


def make_requests(count: int, n: int, seed: int = 0, vocab: int = 61) -> list[Request]:
    rng = np.random.default_rng(seed)
    shared = tuple(rng.integers(0, vocab, 6).tolist())
    requests = []
    for i in range(count):
        tail = tuple(rng.integers(0, vocab, rng.integers(1, 15)).tolist())
        keys = rng.integers(0, 2**32, (n, 2), dtype=np.uint32)
        requests.append(Request(prompt=shared[: i % 7] + tail, keys=keys))
    return requests


def assert_same(model, requests, params, drawn, adapter=None):
    """Compares with the plain sampler: token ids and finish exactly, log-probabilities to 1e-4."""
    expected = reference.sample(model, requests, params, adapter)
    for completions, wanted in zip(drawn, expected, strict=True):
        assert len(completions) == len(wanted)
        for completion, plain in zip(completions, wanted, strict=True):
            assert completion.tokens == plain.tokens
            assert completion.finish == plain.finish
            np.testing.assert_allclose(completion.logprobs, plain.logprobs, atol=1e-4)


def random_adapter(model_spec: ModelSpec, seed: int, *, stacked: bool = False):
    """An adapter with neither factor zero."""
    config = LoraConfig(rank=2, alpha=4.0)
    adapter = init_adapter(model_spec, config, jax.random.key(seed), stacked=stacked)
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(seed + 10), len(leaves))
    leaves = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, leaves)


ENDS = tuple(range(8))
DRAWN = SamplingParams(temperature=1.0, max_new_tokens=12, end_ids=ENDS)


@pytest.mark.parametrize(
    ("family", "siblings"), [(name, 1 + i % 3) for i, name in enumerate(FAMILIES)]
)
def test_every_family_draws_what_the_plain_sampler_draws(family, siblings):
    # The plain sampler keeps no cache, so it scans stacked layers, which the sampler takes apart.
    stacked = siblings == 2
    model = make_model(FAMILIES[family], stacked=stacked)
    adapter = random_adapter(model.spec, 0, stacked=True) if stacked else None
    requests = make_requests(7, 3)
    drawn = Sampler(model, replace(SMALL, width=siblings)).sample(requests, DRAWN, adapter)
    assert {c.finish for group in drawn for c in group} == {"eos", "length"}
    assert_same(model, requests, DRAWN, drawn, adapter)


def test_a_prompt_beyond_the_largest_bucket_is_served_in_its_double(model):
    request = Request(tuple(range(1, 31)), np.arange(4, dtype=np.uint32).reshape(2, 2))
    params = replace(DRAWN, max_new_tokens=10)
    assert SMALL.prefix_buckets == (24,)
    assert_same(model, [request], params, Sampler(model, SMALL).sample([request], params))


@pytest.fixture(scope="module")
def sampler(model):
    return Sampler(model, SMALL)


PARAMS = {
    "greedy": SamplingParams(temperature=0.0, max_new_tokens=6),
    "top-k": SamplingParams(temperature=1.3, top_k=5, max_new_tokens=10, end_ids=ENDS),
    "top-p": SamplingParams(temperature=1.3, top_p=0.6, max_new_tokens=10, end_ids=ENDS),
    "both": SamplingParams(temperature=2.0, top_k=9, top_p=0.7, max_new_tokens=16, end_ids=ENDS),
    "one token": SamplingParams(temperature=1.0, max_new_tokens=1),
    "stop text": SamplingParams(
        temperature=1.0, max_new_tokens=14, stop=("F", "zz", "HI"), end_ids=(3,)
    ),
}


def test_other_parameters_draw_what_the_plain_sampler_draws_and_compile_nothing_new(model, sampler):
    requests = make_requests(9, 2, seed=1)
    sampler.sample(requests, DRAWN)
    before = sampler.stats.executables
    for params in PARAMS.values():
        assert_same(model, requests[:4], params, sampler.sample(requests, params)[:4])
    assert sampler.stats.executables == before


def test_the_number_of_programs_is_known_before_the_run(model):
    """`3 r - 1 + p (1 + c)`: r numbers of rows, p of prefix entries, c sizes of prefill calls."""
    sampler = Sampler(model, replace(SMALL, rows=16))
    shapes = [(s.rows, s.entries, s.siblings) for s in sampler.shapes(20, 12, siblings=3)]
    assert shapes == [(4, 4, 3), (8, 8, 3), (16, 8, 3)]
    known = 3 * 3 - 1 + 2 * (1 + 2)
    assert sampler.warm_up(20, 12, siblings=3) == known
    for count, n in ((1, 3), (3, 3), (30, 3)):
        requests = make_requests(count, n, seed=count)
        drawn = sampler.sample(requests, DRAWN)
        assert_same(model, requests[:2], DRAWN, drawn[:2])
    assert sampler.stats.executables == known


def test_results_depend_neither_on_the_order_of_requests_nor_on_other_requests(model, sampler):
    requests = make_requests(12, 3, seed=2)
    order = np.random.default_rng(0).permutation(12)
    drawn = sampler.sample(requests, DRAWN)
    shuffled = sampler.sample([requests[i] for i in order], DRAWN)
    for place, i in enumerate(order):
        assert [c.tokens for c in shuffled[place]] == [c.tokens for c in drawn[i]]
        for a, b in zip(shuffled[place], drawn[i], strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_two_streams_draw_what_the_plain_sampler_draws(model):
    sampler = Sampler(model, replace(SMALL, rows=8, streams=2))
    sampler._best_rows = 8  # enough work for two
    requests = make_requests(17, 3, seed=6)
    for params in (DRAWN, PARAMS["stop text"]):
        assert_same(model, requests, params, sampler.sample(requests, params))
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


def test_a_call_that_takes_requests_while_it_runs_draws_what_separate_calls_draw(model, sampler):
    """By three policies; a prompt beyond the expected length is drawn last."""
    policies = [Policy(DRAWN), Policy(PARAMS["stop text"]), Policy(PARAMS["top-k"])]
    firsts = make_requests(6, 2, seed=7)
    asked, drawn = list(firsts), {}
    with sampler.open(policies, prompt_tokens=20, siblings=2) as call:
        call.add(firsts)
        while call.busy:
            for request, sibling, completion, place in call.step():
                drawn[id(request), sibling] = completion
                if request.policy < 2:
                    grown = (*request.prompt, *completion.tokens)[-20:]
                    grown += (5,) * (10 if len(asked) == 9 else 0)
                    key = make_requests(1, 1, seed=len(asked))[0].keys
                    order = (1 + request.policy,)
                    asked.append(Request(grown, key, request.policy + 1, order))
                    call.add(asked[-1:], place)
    assert len(drawn) == 6 * 2 * 3
    for number, policy in enumerate(policies):
        own = [request for request in asked if request.policy == number]
        completions = [[drawn[id(r), i] for i in range(len(r.keys))] for r in own]
        again = sampler.sample([replace(r, policy=0) for r in own], policy.params)
        for ours, theirs in zip(completions, again, strict=True):
            assert [(c.tokens, c.finish) for c in ours] == [(c.tokens, c.finish) for c in theirs]
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_every_new_token_is_streamed_once(sampler):
    requests = make_requests(6, 3, seed=4)
    seen = {}
    hook = lambda i, j, new: seen.setdefault((i, j), []).extend(new)  # noqa: E731
    drawn = sampler.sample(requests, PARAMS["stop text"], on_tokens=hook)
    for (i, j), tokens in seen.items():
        assert tuple(tokens) == drawn[i][j].tokens


def test_another_adapter_compiles_nothing_and_acts_as_in_the_plain_sampler(model):
    sampler = Sampler(model, SMALL)
    requests = make_requests(4, 2, seed=5)
    counts = []
    for seed in range(2):
        adapter = random_adapter(model.spec, seed)
        drawn = sampler.sample(requests, DRAWN, adapter=adapter)
        assert_same(model, requests, DRAWN, drawn, adapter)
        counts.append(sampler.stats.executables)
    assert counts[0] == counts[1]


def test_another_sampler_of_such_a_model_traces_nothing(model, sampler, monkeypatch):
    requests = make_requests(6, 3, seed=4)
    drawn = sampler.sample(requests, DRAWN)
    monkeypatch.setattr(Decoder, "hidden", None)
    assert Sampler(make_model(spec()), SMALL).sample(requests, DRAWN) == drawn


def test_weights_with_nan_are_refused(model):
    params = jax.tree.map(lambda x: x * np.float32("nan"), model.params)
    broken = SimpleNamespace(**{**vars(model), "params": params})
    with pytest.raises(UserError, match="NaN"):
        Sampler(broken, SMALL).sample(make_requests(2, 1), DRAWN)


@pytest.mark.parametrize("what", ["cache", "weights"])
def test_int8_is_close_to_full_precision(model, what):
    """One token a completion: later ones would compare log-probabilities of different texts."""
    requests = make_requests(16, 3, seed=6)
    params = SamplingParams(temperature=1.0, max_new_tokens=1)
    exact = Sampler(model, SMALL).sample(requests, params)
    rounded = Sampler(model, replace(SMALL, **{what: "int8"})).sample(requests, params)
    pairs = [pair for groups in zip(exact, rounded, strict=True) for pair in zip(*groups)]  # noqa: B905
    gaps = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in pairs if a.tokens == b.tokens]
    assert len(gaps) >= 0.9 * len(pairs)
    assert 0 < max(gaps) < 0.2


def test_a_cpu_keeps_the_caches_of_a_bfloat16_model_in_float32(model):
    """Its attention is computed in float32, which would otherwise convert them in every step."""
    requests = make_requests(16, 3, seed=6)
    params = SamplingParams(temperature=1.0, max_new_tokens=1)
    params16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    rounded = SimpleNamespace(**{**vars(model), "params": params16, "dtype": jnp.bfloat16})
    sampler = Sampler(rounded, SMALL)
    assert (sampler.dtype, sampler.cache_dtype) == (jnp.bfloat16, jnp.float32)
    assert cache_dtype(SMALL, jnp.bfloat16, "tpu") == jnp.bfloat16
    exact = Sampler(model, SMALL).sample(requests, params)
    pairs = [
        pair
        for groups in zip(exact, sampler.sample(requests, params), strict=True)
        for pair in zip(*groups, strict=True)
    ]
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
