"""One step: accumulation is the large batch, masters are float32, an unsound gradient is inert."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from malt_jax.config.lora import LoraConfig
from malt_jax.config.training import DpoConfig, LoopConfig, OptimConfig, SftConfig
from malt_jax.models.lora import init_adapter
from malt_jax.models.quantized import quantized
from malt_jax.training import remat
from malt_jax.training.dataset import segment
from malt_jax.training.optim import Optimiser, learning_rates, transformation, update
from malt_jax.training.plan import plan_steps
from malt_jax.training.step import (
    COMPILER_OPTIONS,
    Batch,
    batch_loss,
    init_state,
    make_program,
    train_step,
)
from training_model import SPEC, dpo_examples, sft_examples, tiny_model

STEP = jax.jit(train_step, static_argnums=0)


def _batches(examples, rows: int, total: float):
    segments = [segment(example, i) for i, example in enumerate(examples)]
    (micros,) = plan_steps([segments], SPEC, 64 * rows, row_length=64).steps
    return [
        Batch(
            jax.tree.map(jnp.asarray, micro.arrays()),
            jnp.zeros(micro.arrays().sequences.shape),
            jnp.float32(total),
            jnp.float32(1e-2),
            jnp.asarray(i == len(micros) - 1),
            jax.random.key(0),
        )
        for i, micro in enumerate(micros)
    ]


def _adapter(side="b"):
    return init_adapter(SPEC, LoraConfig(rank=4, zero_side=side), jax.random.key(0), stacked=True)


def _run(program, state, frozen, batches):
    for batch in batches:
        state, metrics = STEP(program, state, frozen, batch)
    return state, metrics


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_accumulated_parts_equal_the_large_batch(kind, full):
    model = tiny_model()
    examples = sft_examples(24) if kind == "sft" else dpo_examples(12)
    # Plain gradients: Adam's first step has the size of its sign, whatever the gradient's.
    optim = OptimConfig(name="adafactor", clip=0.0)
    config = SftConfig(optim=optim) if kind == "sft" else DpoConfig(optim=optim)
    total = sum(len(e.completion_ids) for e in examples) if kind == "sft" else len(examples)
    program = make_program(model.graph, jnp.float32, config, 0.0, "cpu")
    trainable, frozen = (model.params, None) if full else (_adapter(), model.params)
    small, large = (_batches(examples, rows, total) for rows in (1, 8))
    assert len(small) > len(large)
    grads = jax.jit(jax.grad(lambda w, b: batch_loss(program, w, frozen, b)[0]))

    def total_of(parts):
        return jax.tree.map(lambda *x: sum(x), *parts)

    summed = total_of(grads(trainable, b) for b in small)
    whole = total_of(grads(trainable, b) for b in large)
    for a, b in zip(jax.tree.leaves(summed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5)
    _, in_parts = _run(program, init_state(program, trainable), frozen, small)
    _, at_once = _run(program, init_state(program, trainable), frozen, large)
    for name in in_parts:
        np.testing.assert_allclose(in_parts[name], at_once[name], rtol=1e-5, atol=1e-6)


def test_only_the_adapter_is_trained_and_both_sides_learn():
    model = tiny_model()
    examples = sft_examples(6)
    config = SftConfig(optim=OptimConfig(learning_rate=0.01))
    program = make_program(model.graph, jnp.float32, config, 0.0, "cpu")
    for side in ("a", "b"):
        start = _adapter(side)
        state = init_state(program, start)
        batches = _batches(examples, 8, 40.0)
        losses = []
        for _ in range(8):
            state, metrics = _run(program, state, model.params, batches)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < losses[0]
        moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), start, state.trainable)
        assert all(jax.tree.leaves(moved))


def test_full_training_keeps_float32_masters_of_a_bfloat16_model():
    model = tiny_model(dtype=jnp.bfloat16)
    config = SftConfig(optim=OptimConfig(name="lion", clip=0.0))
    program = make_program(model.graph, jnp.bfloat16, config, 0.0, "cpu")
    state = init_state(program, model.params)
    batches = [
        replace(b, learning_rate=jnp.float32(1e-6)) for b in _batches(sft_examples(6), 8, 40.0)
    ]
    for _ in range(3):
        state, metrics = _run(program, state, None, batches)
    assert np.isfinite(metrics["loss"])
    before = jax.tree.leaves(model.params)[0].astype(jnp.float32)
    after = jax.tree.leaves(state.trainable)[0]
    assert after.dtype == jnp.float32
    # Steps far below bfloat16's resolution have added up.
    np.testing.assert_allclose(jnp.max(jnp.abs(after - before)), 3e-6, rtol=0.1)


@pytest.mark.parametrize("explode", [1e-6, 1e4])
def test_an_exploding_gradient_changes_nothing(explode):
    model = tiny_model()
    config = SftConfig(loop=LoopConfig(explode=explode))
    program = make_program(model.graph, jnp.float32, config, 0.0, "cpu")
    state = init_state(program, _adapter())
    total = 40.0 if explode == 1e-6 else float("nan")
    after, metrics = _run(program, state, model.params, _batches(sft_examples(6), 8, total))
    assert not metrics["gradient_norm"] <= explode
    kept = (after.trainable, after.moments), (state.trainable, state.moments)
    jax.tree.map(np.testing.assert_array_equal, *kept)


def test_dropout_follows_its_key_and_leaves_dpo_alone():
    model = tiny_model()
    program = make_program(model.graph, jnp.float32, SftConfig(), 0.5, "cpu")
    (batch,) = _batches(sft_examples(6), 8, 40.0)
    adapter = jax.tree.map(lambda x: x + 0.1, _adapter())
    loss = jax.jit(lambda b: batch_loss(program, adapter, model.params, b)[0])
    other = replace(batch, key=jax.random.key(1))
    assert float(loss(batch)) == float(loss(batch)) != float(loss(other))
    assert make_program(model.graph, jnp.float32, DpoConfig(), 0.5, "cpu").dropout == 0.0


@pytest.mark.parametrize("remat", ["none", "full"])
def test_rematerialisation_changes_memory_only(remat):
    model = tiny_model()
    (batch,) = _batches(sft_examples(6), 8, 40.0)
    slopes = []
    for policy in ("dots", remat):
        config = SftConfig(loop=LoopConfig(remat=policy))
        program = make_program(model.graph, jnp.float32, config, 0.1, "cpu")

        def loss(w, p=program):
            return batch_loss(p, w, model.params, batch)[0]

        slopes.append(jax.grad(loss)(_adapter()))
    for a, b in zip(*map(jax.tree.leaves, slopes), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("quantize", [False, True])
def test_rematerialisation_saves_memory_on_a_cpu(quantize):
    # Layers as those of a decoder: what the step keeps of each is the result of its products.
    kernels = jax.random.normal(jax.random.key(0), (4, 3, 64, 64))
    matrix = lambda w: quantized(("layers", 0, "q", "kernel"), w) if quantize else w  # noqa: E731

    def temporaries(policy, options):
        around = remat.transform(policy) or (lambda f: f)

        def mlp(x, gate, up, down):
            return x + (jax.nn.silu(x @ matrix(gate)) * (x @ matrix(up))) @ matrix(down)

        layer = around(mlp)

        def loss(x):
            for layer_kernels in kernels:
                x = layer(x, *layer_kernels)
            return x.sum()

        lowered = jax.jit(jax.grad(loss)).lower(jnp.ones((512, 64)))
        return lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes

    ours = COMPILER_OPTIONS["cpu"]
    kept = temporaries("dots", ours)
    assert kept < 0.8 * temporaries("none", ours)
    assert kept < 0.9 * temporaries("dots", None)  # with XLA's own choice


OPTAX = {
    "adamw": lambda rates: optax.adamw(rates, 0.8, 0.95, weight_decay=0.1),
    "lion": lambda rates: optax.lion(rates, 0.8, 0.95, weight_decay=0.1),
    "adafactor": lambda rates: optax.adafactor(rates, multiply_by_parameter_scale=False),
}


@pytest.mark.parametrize("name", OPTAX)
def test_optimisers_are_optaxs_with_the_rate_as_an_argument(name):
    decay = 0.0 if name == "adafactor" else 0.1
    config = OptimConfig(name=name, beta1=0.8, beta2=0.95, weight_decay=decay, clip=0.0)
    optimiser = Optimiser.of(config)
    rates = learning_rates(config, 7)
    params = {"kernel": jax.random.normal(jax.random.key(0), (160, 130))}
    ours, theirs = params, params
    moments = transformation(optimiser).init(params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        peer = OPTAX[name](lambda count: jnp.asarray(rates)[count])
        peer_state = peer.init(params)
        for step in range(7):
            grads = {"kernel": jax.random.normal(jax.random.key(step + 1), (160, 130))}
            ours, moments = update(optimiser, grads, moments, ours, jnp.float32(rates[step]))
            changes, peer_state = peer.update(grads, peer_state, theirs)
            theirs = optax.apply_updates(theirs, changes)
    np.testing.assert_allclose(ours["kernel"], theirs["kernel"], atol=1e-6)


def test_schedules_rise_to_the_peak_and_end_where_they_say():
    for name, last in {"constant": 1.0, "linear": 0.1, "cosine": 0.1}.items():
        config = OptimConfig(schedule=name, learning_rate=2.0 / 4, warmup=0.25, final=0.1)
        rates = learning_rates(config, 40) / 0.5
        np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
        assert rates[10] == 1.0 and np.all(np.diff(rates[10:]) <= 1e-7)
        # The last step would be followed by one at the final rate, and is not one itself.
        assert (rates[-1] > last) == (last < 1.0) and rates[-1] < last + 0.05
    for steps in (1, 2, 3):
        assert np.all(learning_rates(OptimConfig(), steps) > 0)


def test_the_decay_is_optaxs():
    decays = {
        "linear": optax.linear_schedule(0.5, 0.05, 40),
        "cosine": optax.cosine_decay_schedule(0.5, 40, 0.1),
    }
    for name, schedule in decays.items():
        config = OptimConfig(schedule=name, learning_rate=0.5, warmup=0.0, final=0.1)
        theirs = [float(schedule(step)) for step in range(40)]
        np.testing.assert_allclose(learning_rates(config, 40), theirs, rtol=1e-5)
