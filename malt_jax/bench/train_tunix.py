"""google-tunix's SFT and DPO trainers on the same token ids: what `bench.train` compares with.

Needs google-tunix and qwix, which makes its LoRA adapters. Batches are padded to their longest
member and activations are kept, which is tunix's default and its fastest setting. As on our side,
the first step and compiling are not timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from malt_jax.bench.inputs import dpo_examples, sft_examples
from malt_jax.bench.train import CompileClock
from malt_jax.bench.tunix_model import load_tunix
from malt_jax.memory import peak_bytes

LINEAR = r".*(q|k|v|o|gate|up|down)_proj"
"""All linear layers of a block, as tunix names them."""


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Useful tokens per second after the first step, and the process's peak memory."""
    import optax
    import qwix
    from flax import nnx
    from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig
    from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

    base = load_tunix(job["model"], job["dtype"])
    # Rank and scale as `bench.train` has them.
    adapters = qwix.LoraProvider(module_path=LINEAR, rank=job["rank"], alpha=2.0 * job["rank"])
    rngs = nnx.Rngs(0)
    model = qwix.apply_lora_to_model(base, adapters, rngs=rngs, **base.get_model_input())
    size, vocab = job["batch"], base.config.vocab_size
    optimizer = optax.adamw(1e-4)
    if job["stage"] == "sft":
        examples: list[Any] = sft_examples(size * job["steps"], vocab, 0)
        trainer: Any = PeftTrainer(model, optimizer, TrainingConfig(eval_every_n_steps=1 << 30))
        trainer = trainer.with_gen_model_input_fn(_sft_inputs)
        collate = _sft_batch
    else:
        examples = dpo_examples(size * job["steps"], vocab, 0)
        config = DPOTrainingConfig(eval_every_n_steps=1 << 30, beta=0.2)
        trainer = DPOTrainer(model, base, optimizer, config)
        collate = _dpo_batch
    batches = [collate(examples[i : i + size]) for i in range(0, len(examples), size)]
    # Otherwise it closes after one call, and the first step could not be taken alone.
    trainer.is_managed_externally = True
    clock = CompileClock()
    trainer.train(batches[:1])
    began, compiled = time.perf_counter(), clock.seconds
    # Waits for the last step before it returns.
    trainer.train(batches[1:])
    seconds = time.perf_counter() - began - (clock.seconds - compiled)
    tokens = sum(len(e.prompt_ids) + len(c) for e in examples[size:] for c in e.completions)
    return {
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "compile_s": clock.seconds,
        "tunix": version("google-tunix"),
    }


def _sft_batch(examples: Sequence[Any]) -> Any:
    from tunix.sft.peft_trainer import TrainingInput

    ids, _ = _padded([(*e.prompt_ids, *e.completion_ids) for e in examples])
    # Only completions are learnt. The mask need not hide padding as well: it stands at the end,
    # where no valid token sees it (`_sft_inputs`).
    learnt, _ = _padded([(0,) * len(e.prompt_ids) + (1,) * len(e.completion_ids) for e in examples])
    return TrainingInput(input_tokens=ids, input_mask=learnt)


def _sft_inputs(batch: Any) -> dict[str, Any]:
    import jax.numpy as jnp

    rows, length = batch.input_tokens.shape
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": jnp.broadcast_to(jnp.arange(length), (rows, length)),
        "attention_mask": jnp.tril(jnp.ones((rows, length, length), bool)),
    }


def _dpo_batch(examples: Sequence[Any]) -> Any:
    from tunix.sft.dpo.dpo_trainer import TrainingInput

    size = len(examples)
    # Prompts end where completions begin.
    prompt, prompt_mask = _padded([e.prompt_ids for e in examples], left=True)
    # Chosen and rejected completions are one batch in tunix and need one length.
    both = [e.chosen_ids for e in examples] + [e.rejected_ids for e in examples]
    ids, mask = _padded(both)
    return TrainingInput(prompt, prompt_mask, ids[:size], mask[:size], ids[size:], mask[size:])


def _padded(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The rows as one int32 array `[B, T]` and the mask of what is not padding."""
    longest = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), longest), np.int32)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask
