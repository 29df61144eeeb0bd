"""A frozen base in int8: its arithmetic, its gradients, and a run over it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx

import tiny
import training_model
from malt_jax import cli
from malt_jax.config.lora import LoraConfig
from malt_jax.config.run import from_dict
from malt_jax.config.sampler import SamplerConfig
from malt_jax.errors import UserError
from malt_jax.models.adapters import load_adapter
from malt_jax.models.lora import Adapter, init_adapter
from malt_jax.models.model import Model, load_model
from malt_jax.models.quantized import QuantizedMatrix, dequantized, quantized, with_int8_kernels
from malt_jax.models.weights import weight_bytes
from malt_jax.sampling.request import Request, SamplingParams
from malt_jax.sampling.sampler import Sampler
from malt_jax.training.scores import completion_logprobs
from malt_jax.tree.keys import node_key

KERNEL = ("layers", 0, "q", "kernel")


def rounded(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: integers whose largest magnitude along `axis` is 127, and their scale."""
    scale = np.abs(x).max(axis=axis, keepdims=True) / np.float32(127)
    return np.rint(x / scale), scale


def in_two_digits(x):
    """The vectors as two digits of 8 bits write them."""
    high, scale = rounded(x, -1)
    return (high + np.rint((x / scale - high) * 254) / 254) * scale


def test_the_product_is_that_of_the_rounded_matrix():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 24)).astype(np.float32)
    w = rng.normal(size=(24, 16)).astype(np.float32)
    values, scale = rounded(w, 0)
    matrix = quantized(KERNEL, jnp.asarray(w))
    np.testing.assert_array_equal(matrix.values, values)
    np.testing.assert_allclose(matrix.scale, scale, rtol=1e-6)
    expected = x @ (values * scale)
    found = jnp.asarray(x) @ matrix
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(expected - x @ w).max() > 1e-2
    # The activations themselves have 15 bits: not more, and not the 8 of one digit.
    np.testing.assert_allclose(found, in_two_digits(x) @ (values * scale), rtol=1e-5, atol=1e-5)
    in_bfloat16 = jnp.asarray(x, jnp.bfloat16) @ matrix
    np.testing.assert_allclose(in_bfloat16.astype(jnp.float32), expected, atol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_is_that_of_the_dequantised_matrix(dtype):
    x, dy = jax.random.normal(jax.random.key(0), (2, 3, 5, 24)).astype(dtype)
    matrix = quantized(KERNEL, jax.random.normal(jax.random.key(1), (24, 24)))
    y, pull = jax.vjp(lambda x: x @ matrix, x)
    assert y.dtype == dtype
    expected = dy.astype(jnp.float32) @ matrix.dequantized(jnp.float32).T
    (dx,) = pull(dy)
    assert dx.dtype == dtype
    # In float32 the gradient has 15 bits, as the activations have.
    slack = 1e-4 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(
        dx.astype(jnp.float32), expected, atol=slack * jnp.abs(expected).max()
    )
    if dtype == jnp.float32:
        scaled = np.asarray(dy) * np.asarray(matrix.scale)
        digits = in_two_digits(scaled) @ np.asarray(matrix.values, np.float64).T
        np.testing.assert_allclose(dx, digits, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("quantized") / "model", layers=2)


def trained_like(model: Model) -> Adapter:
    """An adapter that changes something."""
    adapter = init_adapter(model.spec, LoraConfig(rank=4), jax.random.key(0))
    move = partial(jnp.add, jnp.float32(0.02))
    return replace(adapter, layers=jax.tree.map(move, adapter.layers))


def test_the_decoder_computes_with_the_dequantised_weights(folder):
    """Compared with a float model of the same numbers, so that every matrix is in its place."""
    model, exact = load_model(folder, quantize="int8"), load_model(folder)
    matrices = [isinstance(x.get_value(), QuantizedMatrix) for _, x in flat_params(model)]
    assert sum(matrices) == 1 + 7 * model.spec.num_layers  # the head is the embedding
    floats = {
        path: variable.replace(dequantized(variable.get_value(), jnp.float32))
        for path, variable in flat_params(model)
    }
    tokens = np.arange(4, 44)[None].astype(np.int32)
    logits = model(tokens)
    expected = replace(exact, params=nnx.from_flat_state(floats))(tokens)
    np.testing.assert_allclose(logits, expected, atol=2e-3)
    assert np.abs(logits - exact(tokens)).max() > 1e-2
    stacked = load_model(folder, quantize="int8", stacked=True)
    np.testing.assert_allclose(stacked(tokens), logits, atol=2e-3)


def test_a_sampler_rounds_the_kernels_of_stacked_layers_too(folder):
    stacked = with_int8_kernels(load_model(folder, stacked=True).params)
    found = {
        path[-2]
        for path, x in nnx.to_flat_state(stacked)
        if isinstance(x.get_value(), QuantizedMatrix)
    }
    assert found == {"q", "k", "v", "o", "gate", "up", "down"}


def flat_params(model: Model):
    return list(nnx.to_flat_state(model.params))


def test_sampling_and_training_agree_on_log_probabilities(folder):
    model = load_model(folder, quantize="int8")
    adapter = trained_like(model)
    requests = [
        Request(tuple(range(4, 20 + i)), node_key(0, "quantized", str(i))[None]) for i in range(4)
    ]
    params = SamplingParams(temperature=1.0, max_new_tokens=16)
    drawn = [d[0] for d in Sampler(model, SamplerConfig(rows=4)).sample(requests, params, adapter)]
    pairs = [(r.prompt, d.tokens) for r, d in zip(requests, drawn, strict=True)]
    scored = completion_logprobs(model, adapter, pairs)
    said = [sum(d.logprobs) for d in drawn]
    np.testing.assert_allclose(said, scored, atol=2e-3)
    exact = completion_logprobs(load_model(folder), adapter, pairs)
    assert np.abs(scored - exact).max() > 1e-2


def test_a_run_over_an_int8_base_ends_in_an_export_of_what_it_trained(folder, tmp_path):
    data = {
        **tiny.SMALL,
        "model": {"path": str(folder), "quantize": "int8"},
        "sampler": tiny.ONE_BATCH,
        "pipeline": {"roles": [{"name": "generator", "train": "sft", **tiny.ROLE}]},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    line = ["--config", str(tmp_path / "config.yaml"), "--output-dir", str(tmp_path / "run")]
    for command in ("search", "label", "train", "export"):
        assert cli.main([command, *line, "--quiet"]) == 0
    base, merged = load_model(folder, quantize="int8"), tmp_path / "run" / "export" / "generator"
    adapter, _ = load_adapter(merged / "adapter", base.spec)
    tokens = np.arange(4, 44)[None].astype(np.int32)
    expected = nnx.merge(base.graph, base.params)(jnp.asarray(tokens), adapter=adapter)
    # Merged into what the integers stand for, and not into the weights they were rounded from.
    np.testing.assert_allclose(load_model(merged)(tokens), expected, atol=5e-3)
    assert np.abs(load_model(folder)(tokens) - expected).max() > 2e-2


@pytest.mark.parametrize("flags", [{"train": {"full": True}}, {"sampler": {"weights": "int8"}}])
def test_what_an_int8_base_excludes_is_refused(flags):
    with pytest.raises(UserError, match=r"model\.quantize"):
        from_dict({"model": {"quantize": "int8"}, **flags})


def test_a_plan_counts_a_byte_per_weight():
    spec = training_model.SPEC
    floats, integers = (weight_bytes(spec, jnp.bfloat16, q) for q in ("none", "int8"))
    assert 0.5 * floats < integers < 0.75 * floats  # tiny matrices, so their scales count
