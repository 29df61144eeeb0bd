"""KTO, the policy gradient, weights and offsets through the loop that SFT and DPO use."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config.lora import LoraConfig
from malt_jax.config.training import (
    DpoConfig,
    KtoConfig,
    LoopConfig,
    OptimConfig,
    PgConfig,
    SftConfig,
)
from malt_jax.errors import UserError
from malt_jax.models.lora import init_adapter
from malt_jax.storage.checkpoints import CheckpointFolder
from malt_jax.training.fit import train_phase
from malt_jax.training.phase import Phase
from training_model import (
    SPEC,
    dpo_examples,
    kto_examples,
    policy_examples,
    sft_examples,
    tiny_model,
)

FAST = OptimConfig(learning_rate=1e-2, warmup=0.0)
LOOP = {"row_length": 64, "micro_tokens": 128}
MODEL = tiny_model()
ADAPTER = init_adapter(SPEC, LoraConfig(rank=4), jax.random.key(0), stacked=True)
POLICY = policy_examples(MODEL, ADAPTER, 12)


def kto(folder=None, examples=None, start=ADAPTER, on_step=None, model=MODEL, loop=None, **fields):
    config = KtoConfig(
        **{"epochs": 2, "batch_size": 5, "optim": FAST, **fields},
        loop=LoopConfig(**{**LOOP, **(loop or {})}),
    )
    saver = folder and CheckpointFolder(folder)
    examples = kto_examples(12) if examples is None else examples
    return train_phase(model, start, examples, config, saver=saver, on_step=on_step)


def pg(folder=None, examples=POLICY, start=ADAPTER, on_step=None, model=MODEL, loop=None, **fields):
    on_policy = fields.pop("on_policy", start is ADAPTER)
    config = PgConfig(
        **{"epochs": 2, "batch_size": 4, "optim": FAST, **fields},
        loop=LoopConfig(**{**LOOP, **(loop or {})}),
    )
    saver = folder and CheckpointFolder(folder)
    return train_phase(
        model, start, examples, config, saver=saver, on_step=on_step, on_policy=on_policy
    )


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("training", [kto, pg])
def test_killed_and_resumed_the_weights_are_bitwise_the_same(training, tmp_path):
    def kill(step, *_):
        if step == 4:
            raise Killed

    loop = {"save_every": 2, "held_out": 0.2, "eval_every": 2}
    whole = training(tmp_path / "whole", loop=loop)
    with pytest.raises(Killed):
        training(tmp_path / "cut", on_step=kill, loop=loop)
    seen = []
    resumed = training(tmp_path / "cut", on_step=lambda s, *_: seen.append(s), loop=loop)
    assert seen[0] == 3
    same(resumed.trainable, whole.trainable)
    assert resumed.measured == whole.measured
    # A finished training is returned with what was measured of it, and not measured again.
    again = training(tmp_path / "cut", on_step=lambda *_: pytest.fail("trained again"), loop=loop)
    assert again.measured == whole.measured


@pytest.mark.parametrize("training", [kto, pg])
def test_accumulated_micro_batches_are_the_large_batch(training):
    """Also the estimate of the divergence, which is the whole batch's in either case."""
    small = training(loop={"micro_tokens": 64}, epochs=1)
    large = training(loop={"micro_tokens": 1024}, epochs=1)
    for a, b in zip(small.log, large.log, strict=True):
        for name in set(a) - {"tokens_per_s"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_kto_starts_at_one_half_and_learns_to_tell_the_kinds_apart():
    log = kto(epochs=4).log
    assert log[0]["preference_loss"] == pytest.approx(0.5, abs=1e-6) and log[0]["kl"] == 0
    assert log[-1]["margin"] > log[0]["margin"] + 0.1
    assert log[-1]["preference_loss"] < 0.5


def test_weights_of_kinds_and_of_examples_act():
    plain = kto(epochs=1)
    heavy = kto(epochs=1, desirable_weight=3.0)
    weighed = kto(
        epochs=1, examples=[replace(e, weight=3.0 if e.label else 1.0) for e in kto_examples(12)]
    )
    assert heavy.log[0]["loss"] > plain.log[0]["loss"]
    assert heavy.log[0]["preference_loss"] == pytest.approx(0.5, abs=1e-6)
    # What is logged beside the loss has no weights.
    assert weighed.log[0]["preference_loss"] == pytest.approx(0.5, abs=1e-6)
    assert weighed.log[0]["kl"] == 0
    assert weighed.log[0]["gradient_norm"] != plain.log[0]["gradient_norm"]


def test_the_policy_gradient_begins_at_a_ratio_of_1_and_raises_what_had_an_advantage():
    outcome = pg(epochs=4, clip=0.5)
    assert outcome.measured["start_ratio_gap"] < 1e-3
    first = outcome.log[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-3) and first["clip_fraction"] == 0
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-5)
    phase = Phase(MODEL, ADAPTER, POLICY, PgConfig())
    after, _ = phase.score(outcome.trainable, phase.every_example)
    before, _ = phase.score(ADAPTER, phase.every_example)
    advantage = np.array([e.advantage for e in POLICY])
    assert np.mean((after - before) * advantage) > 0.1
    assert outcome.log[-1]["approx_kl"] > 0 and outcome.measured["kl_from_start"] > 0


def test_log_probabilities_of_another_policy_are_refused_if_it_should_be_the_same():
    wrong = [replace(e, logprobs=tuple(x - 0.01 for x in e.logprobs)) for e in POLICY[:1]]
    wrong += POLICY[1:]
    with pytest.raises(UserError, match=r"1 of 12 completions.*0.01 away from 1, allowed: 0.001"):
        pg(examples=wrong)
    # Begun elsewhere, as after SFT, the ratios are the correction for it.
    off = pg(examples=wrong, on_policy=False, epochs=1)
    assert off.measured["start_ratio_gap"] == pytest.approx(0.01, rel=0.02)


def test_in_bfloat16_the_mean_distance_from_1_decides():
    model = tiny_model(dtype=jnp.bfloat16)
    examples = [
        replace(e, logprobs=tuple(x - 0.01 for x in e.logprobs))
        for e in policy_examples(model, ADAPTER, 12)
    ]
    outcome = pg(model=model, examples=examples, epochs=1)
    assert outcome.measured["start_ratio_gap"] == pytest.approx(0.01, rel=0.1)
    wrong = [replace(e, logprobs=tuple(x - 0.1 for x in e.logprobs)) for e in examples]
    with pytest.raises(UserError, match=r"mean absolute log-ratio is 0.11, allowed: 0.05"):
        pg(model=model, examples=wrong, epochs=1)


def test_the_penalty_holds_the_policy_at_its_start():
    free, held = (pg(epochs=4, clip=0.5, kl_weight=weight) for weight in (0.0, 10.0))
    assert held.measured["kl_from_start"] < 0.8 * free.measured["kl_from_start"]


@pytest.mark.parametrize("training", [kto, pg])
def test_full_weights_and_bfloat16_go_through_the_same_loop(training):
    model = tiny_model(dtype=jnp.bfloat16)
    outcome = training(
        model=model, start=model.params, epochs=1, optim=OptimConfig(learning_rate=1e-3)
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(outcome.trainable)} == {"float32"}
    assert outcome.measured["kl_from_start"] > 0


def test_training_stops_early_by_the_held_out_loss():
    outcome = kto(
        epochs=30, loop={"held_out": 0.3, "eval_every": 1, "patience": 2},
        optim=OptimConfig(learning_rate=0.3, warmup=0.0),
    )  # fmt: skip
    assert outcome.stopped_early and outcome.best_step < outcome.steps


@pytest.mark.parametrize(("steps", "used"), [(2, 10), (7, 12)])
def test_a_phase_takes_as_many_steps_as_it_is_told(steps, used):
    examples, config = kto_examples(12), KtoConfig(batch_size=5, loop=LoopConfig(steps=steps))
    phase = Phase(MODEL, ADAPTER, examples, config)
    assert len(phase.batches) == len(phase.plan.steps) == steps
    # Each pass holds every example that is used once; the others are left out and counted.
    passes = [i for batch in phase.batches[: phase.epoch_steps] for i in batch]
    assert sorted(passes) == list(range(used)) and len(phase.examples) == used
    assert phase.counts.get("unused", 0) == 12 - used
    if used == 12:
        by_epochs = Phase(MODEL, ADAPTER, examples, KtoConfig(epochs=3, batch_size=5))
        assert phase.batches == by_epochs.batches[:steps]


def test_the_divergence_from_the_start_is_0_for_weights_that_did_not_move():
    still = OptimConfig(learning_rate=1e-12, warmup=0.0)
    assert kto(epochs=1, optim=still).measured["kl_from_start"] == pytest.approx(0.0, abs=1e-6)
    config = SftConfig(epochs=1, optim=FAST, loop=LoopConfig(**LOOP))
    moved = train_phase(MODEL, ADAPTER, sft_examples(8), config)
    assert moved.measured["kl_from_start"] > 1e-4


def test_weights_of_sft_multiply_the_loss_of_their_examples():
    config = SftConfig(epochs=1, optim=FAST, loop=LoopConfig(**LOOP))
    plain = train_phase(MODEL, ADAPTER, sft_examples(8), config)
    twice = train_phase(MODEL, ADAPTER, [replace(e, weight=2.0) for e in sft_examples(8)], config)
    mixed = [replace(e, weight=1.0 + i) for i, e in enumerate(sft_examples(8))]
    other = train_phase(MODEL, ADAPTER, mixed, config)
    assert twice.log[0]["loss"] == pytest.approx(2 * plain.log[0]["loss"], rel=1e-6)
    assert other.log[0]["loss"] != pytest.approx(plain.log[0]["loss"], rel=1e-3)


def test_weights_do_not_cancel_within_a_batch():
    config = SftConfig(epochs=1, batch_size=1, optim=FAST, loop=LoopConfig(**LOOP))
    examples = sft_examples(2)
    plain = train_phase(MODEL, ADAPTER, examples, config).log[0]["gradient_norm"]
    heavy = [replace(e, weight=1.75) for e in examples]
    found = train_phase(MODEL, ADAPTER, heavy, config).log[0]["gradient_norm"]
    assert found == pytest.approx(1.75 * plain, rel=1e-3)
    one = [kto(epochs=1, batch_size=2, examples=[replace(e, weight=w) for e in kto_examples(2)])
           for w in (1.0, 1.75)]  # fmt: skip
    norms = [outcome.log[0]["gradient_norm"] for outcome in one]
    assert norms[1] == pytest.approx(1.75 * norms[0], rel=1e-3)


def test_an_offset_widens_the_gap_of_the_pairs_that_have_a_margin():
    pairs = [replace(p, margin=float(i % 2)) for i, p in enumerate(dpo_examples(12))]
    fields = {"epochs": 6, "batch_size": 4, "optim": FAST, "loop": LoopConfig(**LOOP)}
    gaps = []
    for offset in (0.0, 5.0):
        config = DpoConfig(**fields, offset=offset)
        given = pairs if offset else [replace(pair, margin=0.0) for pair in pairs]
        trained = train_phase(MODEL, ADAPTER, given, config).trainable
        phase = Phase(MODEL, ADAPTER, given, config)
        after, before = (phase.score(w, phase.every_example)[0] for w in (trained, ADAPTER))
        gap = np.diff((before - after).reshape(-1, 2))[:, 0]
        gaps.append(gap[1::2].mean() - gap[::2].mean())
    assert gaps[1] > gaps[0] + 1.0


@pytest.mark.parametrize(("margin", "offset"), [(1.0, 0.0), (0.0, 1.0)])
def test_margins_and_an_offset_are_refused_without_each_other(margin, offset):
    pairs = [replace(pair, margin=margin) for pair in dpo_examples(4)]
    with pytest.raises(ValueError, match="one does nothing without the other"):
        train_phase(MODEL, ADAPTER, pairs, DpoConfig(offset=offset))
