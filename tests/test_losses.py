"""The losses are their formulas in plain NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config.training import DpoConfig, KtoConfig, PgConfig, SftConfig
from malt_jax.training.logprobs import chunked_divergence
from malt_jax.training.losses import policy_loss, preference_loss, unpaired_loss
from malt_jax.training.objectives import Batch, objective_of
from training_model import SPEC, sft_examples

RNG = np.random.default_rng(0)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def float32(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_an_offset_asks_for_a_wider_gap_in_proportion_to_the_margin():
    policy, reference, margins = float32(6, 2), float32(6, 2), np.abs(float32(6))
    config = DpoConfig(beta=0.3, offset=0.7)
    lengths = np.ones((6, 2), np.float32)
    arrays = map(jnp.asarray, (policy, reference, lengths))
    ours = preference_loss(*arrays, config, jnp.asarray(margins)).loss
    gap = (policy - reference)[:, 0] - (policy - reference)[:, 1]
    np.testing.assert_allclose(ours, -np.log(sigmoid(0.3 * gap - 0.7 * margins)), rtol=1e-5)
    # Off, or without a margin, it is DPO as published, to the bit.
    plain = preference_loss(*map(jnp.asarray, (policy, reference, lengths)), DpoConfig(beta=0.3))
    for off, given in ((DpoConfig(beta=0.3), margins), (config, 0 * margins)):
        arrays = map(jnp.asarray, (policy, reference, lengths))
        same = preference_loss(*arrays, off, jnp.asarray(given))
        np.testing.assert_array_equal(same.loss, plain.loss)


def test_kto_is_its_formula():
    policy, reference = float32(8), float32(8)
    desirable = np.array([1, 0, 1, 1, 0, 0, 1, 0], np.float32)
    config = KtoConfig(beta=0.4, desirable_weight=1.5, undesirable_weight=0.5)
    z = np.float32(0.6)
    ours = unpaired_loss(*map(jnp.asarray, (policy, reference, desirable, z)), config)
    for i in range(8):
        r = policy[i] - reference[i]
        good = 1.5 * (1 - sigmoid(0.4 * (r - z)))
        bad = 0.5 * (1 - sigmoid(0.4 * (z - r)))
        np.testing.assert_allclose(ours.loss[i], good if desirable[i] else bad, rtol=1e-5)
        np.testing.assert_allclose(ours.reward[i], 0.4 * r, rtol=1e-5)


def test_the_clipped_policy_gradient_is_its_formula():
    policy, behaviour, start, advantage = (0.3 * float32(50) for _ in range(4))
    config = PgConfig(clip=0.2)
    ours = policy_loss(*map(jnp.asarray, (policy, behaviour, start, advantage)), config)
    held = 0
    for i in range(50):
        rho, a = np.exp(policy[i] - behaviour[i]), advantage[i]
        bounded = min(max(rho, 0.8), 1.2)
        np.testing.assert_allclose(ours.loss[i], -min(rho * a, bounded * a), atol=1e-6)
        active = (a > 0 and rho > 1.2) or (a < 0 and rho < 0.8)
        assert bool(ours.clipped[i]) == active
        held += active
        x = np.exp(start[i] - policy[i])
        np.testing.assert_allclose(ours.penalty[i], x - 1 - np.log(x), atol=1e-6)
    assert 0 < held < 50
    np.testing.assert_allclose(
        ours.moved, np.expm1(policy - behaviour) - (policy - behaviour), atol=1e-6
    )


def test_where_the_clip_holds_a_token_has_no_gradient():
    behaviour = jnp.zeros(4)
    policy = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5]))
    advantage = jnp.array([2.0, -2.0, 2.0, -2.0])
    loss = lambda p: jnp.sum(policy_loss(p, behaviour, p, advantage, PgConfig()).loss)  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(policy), [0.0, 3.0, -1.0, 0.0], atol=1e-6)


def test_the_divergence_of_two_policies_is_a_sum_over_the_vocabulary():
    ours, theirs, head = float32(2, 5, 8), float32(2, 5, 8), float32(8, 11)
    weights = np.ones((2, 5), np.float32)
    weights[1, 3:] = 0.0
    apply = lambda x: x @ jnp.asarray(head)  # noqa: E731
    for chunk in (1, 2, 5):
        found = chunked_divergence(*map(jnp.asarray, (ours, theirs, weights)), apply, apply, chunk)
        p, q = (np.exp(x @ head) for x in (ours, theirs))
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        expected = (p * np.log(p / q)).sum(-1) * weights
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def packed(examples, extra, total):
    """One micro-batch of the examples, the log-probabilities 0, -0.1, -0.2, ... of its targets."""
    from malt_jax.training.dataset import segment
    from malt_jax.training.plan import plan_steps

    segments = [segment(example, i) for i, example in enumerate(examples)]
    (step,) = plan_steps([segments], SPEC, 4096, row_length=256).steps
    (micro,) = step
    rows = jax.tree.map(jnp.asarray, micro.arrays())
    values = {
        name: jnp.where(rows.sequences >= 0, x[rows.sequences], 0) for name, x in extra.items()
    }
    zeros = jnp.zeros(rows.sequences.shape)
    last, key = jnp.asarray(True), jax.random.key(0)
    batch = Batch(rows, zeros, jnp.float32(total), jnp.float32(0), last, key, values)
    places = jnp.arange(rows.targets.size, dtype=jnp.float32).reshape(rows.targets.shape)
    return batch, -0.1 * places * rows.weights


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_of_sft_multiply_the_tokens_of_an_example_in_a_mean_over_all(weighted):
    examples = sft_examples(5)
    weight = np.array([1, 2, 0.5, 3, 0.25] if weighted else [1] * 5, np.float32)
    tokens = np.array([len(e.completion_ids) for e in examples])
    total = float(tokens.sum())  # as `fit` counts them, without weights
    batch, logprobs = packed(examples, {"weight": jnp.asarray(weight)}, total)
    loss, metrics = objective_of(SftConfig())(logprobs, batch)
    expected = 0.0
    for r, sequences in enumerate(batch.rows.sequences):
        for slot, number in enumerate(sequences):
            own = np.asarray((batch.rows.slots[r] == slot) & (batch.rows.weights[r] > 0))
            counts = weight[number] if number >= 0 else 0.0
            expected -= counts * float(np.sum(np.asarray(logprobs[r]) * own))
    np.testing.assert_allclose(loss, expected / total, rtol=1e-5)
    assert float(metrics["tokens"]) == tokens.sum()
    if not weighted:
        plain, _ = packed(examples, {}, total)
        assert float(objective_of(SftConfig())(logprobs, plain)[0]) == float(loss)
