"""Exact resume, guard rails, the best checkpoint, and roles mixed by a stated rule."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config.lora import LoraConfig
from malt_jax.config.training import DpoConfig, LoopConfig, OptimConfig, SftConfig
from malt_jax.data.examples import DpoExample, PolicyExample, SftExample, UnpairedExample
from malt_jax.errors import RunStopped, UserError
from malt_jax.models.lora import init_adapter
from malt_jax.storage.checkpoints import CheckpointFolder
from malt_jax.storage.signals import graceful_stop
from malt_jax.training import loop
from malt_jax.training.dataset import admit, epoch_order, split
from malt_jax.training.fit import train_phase
from malt_jax.training.saver import FINAL, MemorySaver, load_weights
from malt_jax.training.step import train_step
from training_model import SPEC, dpo_examples, ids, sft_examples, tiny_model

FAST = OptimConfig(learning_rate=1e-2, warmup=0.0)
LOOP = {"row_length": 64, "micro_tokens": 128}
MODEL = tiny_model()


def adapter(seed: int = 0):
    return init_adapter(SPEC, LoraConfig(rank=4), jax.random.key(seed), stacked=True)


def sft(tmp_path, examples=None, start=None, epochs=2, dropout=0.0, on_step=None, **loop):
    config = SftConfig(epochs=epochs, batch_size=4, optim=FAST, loop=LoopConfig(**LOOP, **loop))
    return train_phase(
        MODEL, start or adapter(), examples or sft_examples(10), config,
        saver=CheckpointFolder(tmp_path), dropout=dropout, on_step=on_step,
    )  # fmt: skip


def dpo(tmp_path, saver=None, pairs=None, on_step=None, **fields):
    loop = LoopConfig(**LOOP, **fields.pop("loop", {}))
    config = DpoConfig(epochs=2, batch_size=4, optim=FAST, loop=loop, **fields)
    saver, pairs = saver or CheckpointFolder(tmp_path), pairs or dpo_examples(10)
    return train_phase(MODEL, adapter(), pairs, config, saver=saver, on_step=on_step)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class Killed(BaseException):
    pass


def _kill_at(step):
    def on_step(now, *_):
        if now == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("step", [1, 3, 4])
def test_killed_at_any_step_and_resumed_the_weights_are_bitwise_the_same(tmp_path, step):
    options = {"dropout": 0.2, "held_out": 0.2, "eval_every": 2}
    whole = sft(tmp_path / "whole", **options)
    with pytest.raises(Killed):
        sft(tmp_path / "cut", on_step=_kill_at(step), save_every=1, **options)
    seen = []
    resumed = sft(tmp_path / "cut", on_step=lambda s, *_: seen.append(s), save_every=1, **options)
    # The kill came before that step's checkpoint, so it is computed again.
    assert seen == list(range(step, whole.steps + 1))
    same(resumed.trainable, whole.trainable)
    assert resumed.best_step == whole.best_step

    def without_time(log):
        return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in log]

    assert without_time(resumed.log) == without_time(whole.log)


def test_dpo_resumes_bitwise_too(tmp_path):
    whole = dpo(tmp_path / "whole")
    with pytest.raises(Killed):
        dpo(tmp_path / "cut", on_step=_kill_at(3), loop={"save_every": 2})
    same(dpo(tmp_path / "cut", loop={"save_every": 2}).trainable, whole.trainable)


def test_told_to_stop_it_saves_and_goes_on_from_there(tmp_path):
    whole = sft(tmp_path / "whole")
    with graceful_stop(), pytest.raises(RunStopped):
        sft(tmp_path / "cut", on_step=lambda s, *_: s == 3 and signal.raise_signal(signal.SIGTERM))
    seen = []
    resumed = sft(tmp_path / "cut", on_step=lambda s, *_: seen.append(s))
    assert seen == list(range(4, whole.steps + 1))
    same(resumed.trainable, whole.trainable)


@pytest.mark.parametrize("training", [sft, dpo])
def test_told_to_stop_before_the_first_step_it_compiles_none(tmp_path, training):
    """Nor does DPO measure its reference first, which takes minutes on a real model."""
    with graceful_stop(), pytest.raises(RunStopped):
        signal.raise_signal(signal.SIGTERM)
        training(tmp_path, on_step=lambda *_: pytest.fail("took a step"))
    assert not [*tmp_path.rglob("*")]


def test_told_to_stop_while_saving_it_takes_no_further_step(tmp_path, monkeypatch):
    def told(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return save(*arguments)

    save, seen = loop._save, []
    monkeypatch.setattr(loop, "_save", told)
    with graceful_stop(), pytest.raises(RunStopped):
        sft(tmp_path, on_step=lambda s, *_: seen.append(s), save_every=2)
    assert seen == [1, 2]


def test_a_finished_training_is_returned_not_repeated(tmp_path):
    first = sft(tmp_path)
    again = sft(tmp_path, on_step=lambda *_: pytest.fail("trained again"))
    same(again.trainable, first.trainable)
    assert (again.steps, again.log, again.tokens) == (first.steps, first.log, first.tokens)
    assert [p.name for p in tmp_path.iterdir()] == [FINAL]


def test_what_a_kill_left_of_other_checkpoints_is_cleared(tmp_path):
    sft(tmp_path)
    CheckpointFolder(tmp_path).save("step-00000002", {"w": jnp.zeros(1)}, {})
    (tmp_path / "best-00000001").mkdir()
    sft(tmp_path, on_step=lambda *_: pytest.fail("trained again"))
    assert [p.name for p in tmp_path.iterdir()] == [FINAL]


@pytest.mark.parametrize(
    "change", [{"epochs": 3}, {"start": adapter(1)}, {"examples": sft_examples(9)}]
)
def test_a_folder_of_another_training_is_refused(tmp_path, change):
    sft(tmp_path)
    with pytest.raises(UserError, match="another config, data or starting weights"):
        sft(tmp_path, **change)


@pytest.mark.parametrize(
    "fields", [{}, {"label_smoothing": 0.1}, {"length_normalised": True}, {"nll_weight": 1.0}]
)
def test_dpo_starts_at_ln_2_with_no_margin(tmp_path, fields):
    first = dpo(tmp_path, **fields).log[0]
    assert first["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(first["margin"]) < 1e-5


def test_ipo_starts_at_its_own_constant(tmp_path):
    first = dpo(tmp_path, loss="ipo", beta=0.5).log[0]
    assert first["preference_loss"] == pytest.approx(1.0, abs=1e-5)


def test_the_control_of_dpo_is_the_likelihood_of_the_chosen_alone(tmp_path):
    log = dpo(tmp_path, loss="nll").log
    assert all(entry["loss"] == entry["nll"] for entry in log)
    assert log[0]["preference_loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_dpo_against_anothers_reference_is_a_fault(tmp_path):
    logprobs = np.full((10, 2), -30.0, np.float32)
    logprobs[:, 1] = -10.0

    class Anothers(MemorySaver):
        def references(self, key, compute):
            return logprobs

    with pytest.raises(UserError, match="not those of the policy"):
        dpo(tmp_path, saver=Anothers())


def test_dpo_learns_to_prefer(tmp_path):
    log = dpo(tmp_path).log
    assert log[-1]["margin"] > log[0]["margin"]


def test_pairs_equal_after_truncation_and_hopeless_ones_are_dropped_and_counted(tmp_path):
    rng = np.random.default_rng(0)
    shared = ids(rng, 20)
    pairs = [
        *dpo_examples(6),
        DpoExample(ids(rng, 12), shared[:12], shared, "equal"),
        DpoExample(ids(rng, 12), (*shared, 1), (*shared, 2), "too long"),
        DpoExample(ids(rng, 24), (1, 2), (2, 1), "long prompt"),
        DpoExample(ids(rng, 3), (1, 2), (), "empty"),
    ]
    examples, counts = admit(pairs, 24)
    assert counts == {"no_room": 1, "empty": 1, "equal": 1, "too_long": 1, "truncated": 0}
    assert examples == pairs[:6]
    outcome = dpo(tmp_path, pairs=pairs, loop={"max_length": 24})
    assert outcome.counts == {**counts, "trained": 6, "held_out": 0}


def test_a_long_completion_is_cut_at_its_end():
    rejected = DpoExample((1, 2), (3, 4), (4, 5, 6, 7), "x")
    (pair,), counts = admit([rejected], 4)
    assert pair.completions == ((3, 4), (4, 5)) and counts["truncated"] == 1
    policy = PolicyExample((1, 2), (3, 4, 5), "x", (-1.0, -2.0, -3.0), 0.5)
    assert admit([policy], 4)[0][0].logprobs == (-1.0, -2.0)


@pytest.mark.parametrize(
    "example",
    [
        SftExample((1, 2), (3, 4, 5, 6), "x"),
        DpoExample((1, 2), (3, 4, 5, 6), (4, 5), "x"),
        UnpairedExample((1, 2), (3, 4, 5, 6), "x", label=True),
    ],
)
def test_what_would_be_imitated_without_its_end_is_left_out_and_counted(example):
    kept, counts = admit([example], 4)
    assert not kept and counts["too_long"] == 1
    assert admit([example], 6)[0] == [example]


def test_no_example_left_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no example .*loop\.max_length"):
        sft(tmp_path, examples=[SftExample((), (1,), "x")])


def test_an_exploding_gradient_stops_the_training_and_names_the_batch(tmp_path):
    with pytest.raises(UserError, match=r"step 1: .*gradient norm.*stopped-batch.json"):
        sft(tmp_path, explode=1e-9)
    saved = json.loads((tmp_path / "stopped-batch.json").read_text())
    assert saved["step"] == 1 and len(saved["ids"]) == 4


def test_a_gradient_that_is_not_a_number_stops_the_training(tmp_path):
    start = jax.tree.map(lambda x: x * jnp.nan, adapter())
    with pytest.raises(UserError, match="nan"):
        sft(tmp_path, start=start)


def test_the_best_weights_by_the_held_out_examples_are_returned(tmp_path):
    steps: dict[int, float] = {}

    def watch(step, _, record):
        if "held_out_loss" in record:
            steps[step] = record["held_out_loss"]

    # Few random examples, many passes: it overfits, and the best step is not the last.
    options = {"held_out": 0.3, "eval_every": 2, "epochs": 20}
    outcome = sft(tmp_path / "a", on_step=watch, **options)
    assert outcome.best_step == min(steps, key=steps.get) < outcome.steps
    assert not outcome.stopped_early
    early = sft(tmp_path / "b", patience=2, **options)
    assert early.stopped_early and early.steps < outcome.steps
    if early.best_step == outcome.best_step:
        same(early.trainable, outcome.trainable)


def test_dpo_keeps_the_best_by_held_out_preference_accuracy(tmp_path):
    log = dpo(tmp_path, loop={"held_out": 0.3, "eval_every": 1}).log
    assert all(0.0 <= record["held_out_accuracy"] <= 1.0 for record in log)


def test_a_question_is_never_on_both_sides_of_the_split():
    examples = [
        SftExample((1, i), (2,), f"{i}{j}", question_id=f"Q{i}")
        for i in range(20)
        for j in range(3)
    ]
    train, held = split(examples, 0.25, seed=1)

    def groups(many):
        return {examples[i].question_id for i in many}

    assert 2 <= len(groups(held)) <= 8 and not groups(held) & groups(train)
    assert sorted(train + held) == list(range(60))
    assert split(examples, 0.25, seed=2)[1] != held
    assert len(groups(split(examples, 1e-6, seed=1)[1])) == 1
    assert len(groups(split(examples[:6], 0.5, seed=1)[0])) >= 1


def test_a_later_phase_holds_out_the_same_questions():
    examples = [SftExample((1, i), (2,), f"{i}", question_id=f"Q{i}") for i in range(300)]
    for seed in range(5):
        train = {examples[i].question_id for i in split(examples, 0.1, seed)[0]}
        later = examples[::3]  # DPO has pairs of some questions only
        held = {later[i].question_id for i in split(later, 0.1, seed)[1]}
        assert held and not held & train


def test_shared_mode_mixes_roles_in_every_stretch_as_the_whole_does():
    examples = [
        e for role, n in (("g", 24), ("v", 12), ("r", 12)) for e in sft_examples(n, role=role)
    ]
    order = epoch_order(examples, seed=3, epoch=0)
    assert sorted(order) == list(range(48))
    for start in range(0, 48, 8):
        counts = Counter(examples[i].role for i in order[start : start + 8])
        assert abs(counts["g"] - 4) <= 1 and abs(counts["v"] - 2) <= 1 and abs(counts["r"] - 2) <= 1
    assert order == epoch_order(examples, seed=3, epoch=0) != epoch_order(examples, seed=3, epoch=1)


def test_siblings_stay_together_when_asked():
    examples = [SftExample((p,), (c,), f"{p}{c}") for c in range(3) for p in range(8)]
    order = epoch_order(examples, seed=0, epoch=0, siblings_together=True)
    prompts = [examples[i].prompt_ids for i in order]
    assert all(len(set(prompts[i : i + 3])) == 1 for i in range(0, 24, 3))


def test_full_weights_go_through_the_same_loop(tmp_path):
    outcome = sft(tmp_path / "sft", start=MODEL.params)
    assert outcome.log[-1]["loss"] < outcome.log[0]["loss"]
    loaded = load_weights(CheckpointFolder(tmp_path / "sft"), FINAL, outcome.trainable)
    same(loaded, outcome.trainable)


def test_roles_share_compiled_programs(tmp_path):
    train_step_traces = []
    with jax.log_compiles(False):
        sft(tmp_path / "a", examples=sft_examples(10, seed=1))
        before = _programs()
        sft(tmp_path / "b", examples=sft_examples(14, seed=2), start=adapter(3), epochs=3)
        assert _programs() == before, train_step_traces


def _programs() -> int:
    return jax.jit(train_step, static_argnums=0, donate_argnums=1)._cache_size()


def test_the_best_weights_of_the_newest_checkpoint_outlive_better_ones(tmp_path):
    """After a kill the phase goes back to that checkpoint, and may find no better ones again."""
    kept: list[bool] = []

    def on_step(*_) -> None:
        saver = CheckpointFolder(tmp_path)
        assert len(saver.names("best-")) <= 2  # not one for each improvement
        for name in saver.names("step-")[-1:]:
            best = saver.facts(name)["progress"]["best_step"]
            kept.append(f"best-{best:08d}" in saver.names("best-"))

    loop = {"held_out": 0.3, "eval_every": 1, "save_every": 3}
    sft(tmp_path, epochs=4, on_step=on_step, **loop)
    assert len(kept) > 2 and all(kept)
