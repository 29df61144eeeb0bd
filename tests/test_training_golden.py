"""The losses, their metrics and their gradients are TRL's, to 1e-4 in float32."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from malt_jax.config.training import DpoConfig, KtoConfig, SftConfig
from malt_jax.data.examples import DpoExample, UnpairedExample
from malt_jax.models.model import load_model
from malt_jax.training.dataset import mismatched, segment
from malt_jax.training.phase import Phase, fill_sequences
from malt_jax.training.plan import plan_steps
from malt_jax.training.step import Batch, batch_loss, make_program
from tiny import write_model

torch = pytest.importorskip(
    "torch", reason="the golden values come from torch; pip install .[test]"
)
trl = pytest.importorskip("trl", reason="the golden values come from TRL; pip install .[test]")

PAIRS = 4
BETA = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("golden") / "model", layers=2)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, dtype="float32", stacked=False)


@pytest.fixture(scope="module")
def pairs() -> list[DpoExample]:
    rng = np.random.default_rng(0)

    def draw(low, high):
        return tuple(rng.integers(4, 50, rng.integers(low, high)).tolist())

    return [DpoExample(draw(3, 9), draw(2, 12), draw(2, 12), str(i)) for i in range(PAIRS)]


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    """Made-up reference log-probabilities, so that margins are not 0."""
    return np.random.default_rng(1).uniform(-45.0, -25.0, (PAIRS, 2)).astype(np.float32)


def _trainer(kind: str, folder: Path, tmp_path: Path, rows: list[dict], **options):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, config = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
    }[kind]

    class Trainer(base):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    args = config(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, **options,
    )  # fmt: skip
    return Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def _torch_gradients(model) -> dict[str, np.ndarray]:
    layer = model.model.layers[1]
    named = {
        "embed": model.model.embed_tokens.weight,
        "q": layer.self_attn.q_proj.weight,
        "down": layer.mlp.down_proj.weight,
        "norm": layer.input_layernorm.weight,
    }
    return {name: weight.grad.numpy().copy() for name, weight in named.items()}


def _our_gradients(gradients: nnx.State) -> dict[str, np.ndarray]:
    flat = dict(nnx.to_flat_state(gradients))
    return {
        "embed": np.asarray(flat["embed",][...]),
        "q": np.asarray(flat["layers", 1, "q", "kernel"][...]).T,
        "down": np.asarray(flat["layers", 1, "down", "kernel"][...]).T,
        "norm": np.asarray(flat["layers", 1, "attention_norm", "weight"][...]),
    }


def _ours(model, examples, config, references, total, extra=lambda rows: {}):
    program = make_program(model.graph, jnp.float32, config, 0.0, "cpu")
    segments = [segment(example, i) for i, example in enumerate(examples)]
    (micros,) = plan_steps([segments], model.spec, 4096, row_length=64).steps
    loss = jax.jit(jax.value_and_grad(lambda w, b: batch_loss(program, w, None, b), has_aux=True))
    totals, metrics, gradients = 0.0, {}, None
    for micro in micros:
        rows = micro.arrays()
        known = np.where(rows.sequences >= 0, references[rows.sequences], 0).astype(np.float32)
        batch = Batch(
            jax.tree.map(jnp.asarray, rows), jnp.asarray(known), jnp.float32(total),
            jnp.float32(0), jnp.asarray(True), jax.random.key(0), extra(rows),
        )  # fmt: skip
        (value, parts), slope = loss(model.params, batch)
        totals += float(value)
        metrics = {k: metrics.get(k, 0.0) + float(v) for k, v in parts.items()}
        gradients = slope if gradients is None else jax.tree.map(jnp.add, gradients, slope)
    return totals, metrics, _our_gradients(gradients)


OPTIONS = {
    "sigmoid": (DpoConfig(beta=BETA), {"loss_type": ["sigmoid"]}),
    "ipo": (DpoConfig(beta=BETA, loss="ipo"), {"loss_type": ["ipo"]}),
    "cdpo": (
        DpoConfig(beta=BETA, label_smoothing=0.1),
        # On one pair TRL's `aot`, which sorts a batch, is conservative DPO.
        {"loss_type": ["aot"], "label_smoothing": 0.1},
    ),
    "length": (DpoConfig(beta=BETA, length_normalised=True), {"loss_type": ["sigmoid_norm"]}),
    "rpo": (
        DpoConfig(beta=BETA, nll_weight=0.5),
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ),
    "nll": (DpoConfig(beta=BETA, loss="nll"), {"loss_type": ["sft"]}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_preference_losses_are_trls(name, folder, model, pairs, reference, tmp_path):
    config, options = OPTIONS[name]
    rows = [
        {
            "prompt_ids": [*p.prompt_ids],
            "chosen_ids": [*p.chosen_ids],
            "rejected_ids": [*p.rejected_ids],
        }
        for p in pairs
    ]
    trainer = _trainer("dpo", folder, tmp_path, rows, beta=BETA, **options)
    trainer.precompute_ref_logps = True
    trainer.model.train()
    losses = []
    # One pair at a time: the mean of TRL's losses of single pairs is the mean over pairs, also
    # where TRL averages over the batch's tokens.
    for i, row in enumerate(rows):
        inputs = trainer.data_collator([row])
        inputs["ref_chosen_logps"] = torch.tensor(reference[i, :1])
        inputs["ref_rejected_logps"] = torch.tensor(reference[i, 1:])
        loss = trainer._compute_loss(trainer.model, inputs, False) / PAIRS
        loss.backward()
        losses.append(float(loss))
    theirs = {k: float(np.mean(v)) for k, v in trainer._metrics["train"].items()}

    loss, metrics, gradients = _ours(model, pairs, config, reference.reshape(-1), PAIRS)
    np.testing.assert_allclose(loss, sum(losses), rtol=1e-4)
    for ours, name_ in {
        "chosen_reward": "rewards/chosen",
        "rejected_reward": "rewards/rejected",
        "margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
    }.items():
        np.testing.assert_allclose(metrics[ours], theirs[name_], rtol=1e-4, atol=1e-4)
    for key, expected in _torch_gradients(trainer.model).items():
        np.testing.assert_allclose(gradients[key], expected, atol=1e-4, err_msg=key)


def test_the_sft_loss_is_trls(folder, model, pairs, tmp_path):
    from malt_jax.data.examples import SftExample

    examples = [SftExample(p.prompt_ids, p.chosen_ids, p.id) for p in pairs]
    rows = [
        {
            "input_ids": [*e.prompt_ids, *e.completion_ids],
            "labels": [-100] * len(e.prompt_ids) + [*e.completion_ids],
        }
        for e in examples
    ]
    trainer = _trainer("sft", folder, tmp_path, rows, max_length=None)
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    expected.backward()
    tokens = sum(len(e.completion_ids) for e in examples)
    loss, metrics, gradients = _ours(model, examples, SftConfig(), np.zeros(PAIRS), tokens)
    assert metrics["tokens"] == tokens
    np.testing.assert_allclose(loss, float(expected), rtol=1e-4)
    for key, slope in _torch_gradients(trainer.model).items():
        np.testing.assert_allclose(gradients[key], slope, atol=1e-4, err_msg=key)


def test_the_kto_loss_is_trls(folder, model, pairs, reference, tmp_path):
    """Its loss, metrics and gradients, with the divergence from mismatched completions."""
    labels, rewards = [True, False, True, True], (1.3, 0.7)
    examples = [
        UnpairedExample(p.prompt_ids, p.chosen_ids, p.id, label)
        for p, label in zip(pairs, labels, strict=True)
    ]
    # As TRL prepares them: each prompt with the completion of the example before it in the batch.
    rows = [
        {
            "prompt_ids": [*e.prompt_ids],
            "completion_ids": [*e.completion_ids],
            "KL_completion_ids": [*before.completion_ids],
            "label": e.label,
        }
        for e, before in zip(examples, [examples[-1], *examples[:-1]], strict=True)
    ]
    trainer = _trainer(
        "kto", folder, tmp_path, rows, beta=BETA, desirable_weight=rewards[0],
        undesirable_weight=rewards[1], per_device_train_batch_size=PAIRS,
    )  # fmt: skip
    trainer.precompute_ref_logps = True
    trainer.model.train()
    # References below the policy's, so that the divergence is above 0 and no clamp hides it.
    own, mixed = reference[:, 0], reference[:, 1] - 10.0
    inputs = trainer.data_collator(rows)
    inputs["ref_logps"], inputs["ref_KL_logps"] = torch.tensor(own), torch.tensor(mixed)
    expected = trainer._compute_loss(trainer.model, inputs, False)
    expected.backward()
    theirs = {k: float(np.mean(v)) for k, v in trainer._metrics["train"].items()}

    config = KtoConfig(beta=BETA, desirable_weight=rewards[0], undesirable_weight=rewards[1])
    phase = Phase(model, model.params, examples, config)
    segments = mismatched(examples, 2048, 0)
    assert [list(s.branches[0]) for s in segments] == [row["KL_completion_ids"] for row in rows]
    sums, _ = phase.score(model.params, phase.plan_segments([segments]), PAIRS)
    kl = max(0.0, float(np.mean(sums - mixed)))
    assert kl > 0

    def extra(laid):
        good = np.array(labels, np.float32)
        count = np.where(good > 0, good.sum(), (1 - good).sum())
        values = {"desirable": good, "weight": np.ones(PAIRS), "share": 1.0 / count}
        filled = {k: jnp.asarray(fill_sequences(laid, v)) for k, v in values.items()}
        return {**filled, "kl": jnp.float32(kl)}

    loss, metrics, gradients = _ours(model, examples, config, own, PAIRS, extra)
    np.testing.assert_allclose(loss, float(expected.detach()), rtol=1e-4)
    for ours, name in {
        "kl": "kl",
        "desirable_reward": "rewards/chosen",
        "undesirable_reward": "rewards/rejected",
        "margin": "rewards/margins",
    }.items():
        np.testing.assert_allclose(metrics[ours], theirs[name], rtol=1e-4, atol=1e-4)
    for key, slope in _torch_gradients(trainer.model).items():
        np.testing.assert_allclose(gradients[key], slope, atol=1e-4, err_msg=key)


def test_ktos_other_completions_are_those_of_other_prompts():
    """Siblings follow each other in a batch, and a batch may hold one prompt alone."""
    siblings = [UnpairedExample((1, 2), (3 + i,), f"a{i}", True) for i in range(3)]
    others = [UnpairedExample((7,), (8,), "b", True), UnpairedExample((9,), (9,), "c", False)]
    segments = mismatched([*siblings, others[0]], 8, 0)
    assert [s.branches[0] for s in segments] == [(8,), (8,), (8,), (5,)]
    alone = mismatched(siblings[:1], 8, 4, [*siblings, *others])
    assert [(s.branches[0], s.sequences) for s in alone] == [((8,), (4,))]
    assert mismatched(siblings[:1], 8, 0, siblings)[0].branches[0] == (3,)
