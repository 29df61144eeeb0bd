"""Adapters: nothing changes at the start, merged equals unmerged, dropout is what it says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from closeness import assert_near
from malt_jax.config.lora import LoraConfig
from malt_jax.errors import UserError
from malt_jax.models.lora import (
    for_rows,
    init_adapter,
    join_adapters,
    lora_delta,
    merge_adapter,
    stack_adapter,
    times,
    unstack_adapter,
    with_dropout,
)
from training_model import SPEC, tiny_model

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, SPEC.vocab, (2, 9)))


def _trained(config: LoraConfig, stacked: bool):
    """An adapter with neither factor zero."""
    adapter = init_adapter(SPEC, config, jax.random.key(0), stacked=stacked)
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_new_adapter_changes_nothing_and_exactly_one_side_is_zero(stacked, side):
    model = tiny_model(stacked=stacked)
    config = LoraConfig(rank=4, zero_side=side)
    adapter = init_adapter(SPEC, config, jax.random.key(0), stacked=stacked)
    decoder = nnx.merge(model.graph, model.params)
    np.testing.assert_array_equal(decoder(TOKENS, adapter=adapter), decoder(TOKENS))
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapter):
        assert bool(jnp.all(leaf == 0)) == (path[-1].key == side)


def test_rows_with_adapters_side_by_side_have_each_their_own():
    """Of different ranks, scales and targets; the last row has none."""
    first = _trained(LoraConfig(rank=2, alpha=6.0, targets=("q", "gate")), stacked=False)
    second = _trained(LoraConfig(rank=4, alpha=2.0, targets=("q", "up")), stacked=False)
    joined = for_rows(join_adapters([first, None, second]), jnp.array([2, 0, 1]))
    x = jax.random.normal(jax.random.key(2), (3, 2, SPEC.d_model))
    for target in ("q", "gate", "up"):
        delta = lora_delta(x, joined.layers[1][target], joined.scale)
        for row, adapter in enumerate((second, first)):
            pair = adapter.layers[1].get(target)
            own = 0 * delta[row] if pair is None else lora_delta(x, pair, adapter.scale)[row]
            np.testing.assert_allclose(delta[row], own, atol=1e-6)
        np.testing.assert_array_equal(delta[2], 0)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("targets", [("q", "v"), LoraConfig().targets])
def test_merged_equals_unmerged(stacked, targets):
    model = tiny_model(stacked=stacked)
    adapter = _trained(LoraConfig(rank=4, targets=targets, rslora=True), stacked)
    assert adapter.scale == pytest.approx(32 / 2)
    through = nnx.merge(model.graph, model.params)(TOKENS, adapter=adapter)
    merged = nnx.merge(model.graph, merge_adapter(model.params, adapter))(TOKENS)
    assert_near(merged, through)
    base = nnx.merge(model.graph, model.params)(TOKENS)
    assert float(jnp.max(jnp.abs(base - merged))) > 1e-2


def test_stacked_and_unstacked_adapters_of_one_key_are_equal():
    config = LoraConfig(rank=3)
    listed = init_adapter(SPEC, config, jax.random.key(2))
    stacked = init_adapter(SPEC, config, jax.random.key(2), stacked=True)
    jax.tree.map(np.testing.assert_array_equal, stack_adapter(listed), stacked)
    jax.tree.map(np.testing.assert_array_equal, unstack_adapter(stacked), listed)
    layer = listed.layers[0]
    assert not np.array_equal(layer["gate"]["a"], layer["up"]["a"])


@pytest.mark.parametrize("stacked", [True, False])
def test_dropout_repeats_with_its_key_and_keeps_the_mean(stacked):
    adapter = with_dropout(_trained(LoraConfig(rank=4), stacked), 0.5, jax.random.key(0))
    layer = jax.tree.map(lambda x: x[0], adapter.layers) if stacked else adapter.layers[0]
    pair, other = layer["q"], layer["k"]
    x = jax.random.normal(jax.random.key(5), (1, 2, SPEC.d_model))
    np.testing.assert_array_equal(lora_delta(x, pair, 1.0), lora_delta(x, pair, 1.0))
    assert not np.array_equal(pair["key"], other["key"])
    wide = jnp.broadcast_to(x[:, :1], (1, 20_000, SPEC.d_model))
    plain = {"a": pair["a"], "b": pair["b"]}
    # 20,000 draws of 32 inputs kept or dropped: the mean's standard error is under 1% of the scale.
    mean, whole = lora_delta(wide, pair, 1.0).mean(1), lora_delta(x[:, :1], plain, 1.0)[:, 0]
    assert_near(mean, whole, 0.04)


def test_the_gradient_of_a_bfloat16_product_is_summed_in_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 4096, 8)), jnp.bfloat16)
    pair = {"a": jnp.asarray(rng.standard_normal((8, 2)), jnp.float32), "b": jnp.ones((2, 8))}
    slope = jax.grad(lambda p: jnp.sum(lora_delta(x, p, 1.0).astype(jnp.float32)))(pair)
    dy = np.full((4096, 2), 8.0, np.float32)
    exact = np.asarray(x[0], np.float32).T @ dy
    assert slope["a"].dtype == jnp.float32
    assert_near(slope["a"], exact, 1e-5)


@pytest.mark.parametrize("fields", [{"rank": 0}, {"targets": ("q", "w")}, {"dropout": 1.0}])
def test_wrong_fields_are_refused_by_name(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        LoraConfig(**fields)


def test_a_factor_is_not_rounded_before_it_multiplies():
    """0.22, Granite's factor of every branch, is 0.2197 in bfloat16: 0.12% less in all layers."""
    x = jax.random.uniform(jax.random.key(0), (1 << 14,), jnp.bfloat16, 0.5, 1.0)
    exact = 0.22 * np.asarray(x, np.float64)
    error = np.asarray(times(x, 0.22), np.float64) / exact - 1
    assert abs(error.mean()) < 2e-4
    single = jnp.float32([1.0, 3.0])
    np.testing.assert_array_equal(times(single, 0.22), single * jnp.float32(0.22))
