"""TRL + PEFT on the same token ids: the process that `bench.train` compares with.

Needs torch, trl and peft, which the package itself does not depend on.
"""

from __future__ import annotations

import resource
import tempfile
import time
from typing import Any


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Useful tokens per second after the first step, and the process's peak memory."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from malt_jax.bench.inputs import dpo_examples, sft_examples

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[tuple[float, float]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps.append((time.perf_counter(), time.process_time()))

    # The rows are token ids already, and both sides must train on the same ones.
    class Sft(SFTTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    class Dpo(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    gpu = job["device"] == "gpu" and torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    vocab, count = model.config.vocab_size, job["batch"] * job["steps"]
    common = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job["batch"],
        "num_train_epochs": 1,
        "max_length": None,
        "use_cpu": not gpu,
        "bf16": job["dtype"] == "bfloat16",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "gradient_checkpointing": job["checkpointing"],
        "dataloader_pin_memory": False,
    }
    if job["stage"] == "sft":
        examples: list[Any] = sft_examples(count, vocab, 0)
        rows = [
            {
                "input_ids": [*e.prompt_ids, *e.completion_ids],
                # -100 marks what the loss leaves out: only completions are learnt, as on our side.
                "labels": [-100] * len(e.prompt_ids) + [*e.completion_ids],
            }
            for e in examples
        ]
        trainer_type: Any = Sft
        config: Any = SFTConfig(**common)
    else:
        examples = dpo_examples(count, vocab, 0)
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        rows = [{name: [*getattr(e, name)] for name in names} for e in examples]
        trainer_type, config = Dpo, DPOConfig(**common, beta=0.2)
    lengths = [sum(len(e.prompt_ids) + len(c) for c in e.completions) for e in examples]
    clock = Clock()
    began = time.perf_counter()
    trainer = trainer_type(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        # Rank, scale and dropout as `bench.train` has them.
        peft_config=LoraConfig(
            r=job["rank"], lora_alpha=2 * job["rank"], target_modules="all-linear", lora_dropout=0.0
        ),
        callbacks=[clock],
    )
    # The trainer shuffles, so the tokens of the first step, which is not timed, are looked up.
    order: list[int] = [i for batch in trainer.get_train_dataloader().batch_sampler for i in batch]
    prepared = time.perf_counter()
    trainer.train()
    seconds, cpu = (b - a for a, b in zip(clock.steps[0], clock.steps[-1], strict=True))
    tokens = sum(lengths) - sum(lengths[i] for i in order[: job["batch"]])
    return {
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "cpu_tokens_per_s": tokens / cpu,
        "prepare_s": prepared - began,
        # `ru_maxrss` is in KiB on Linux.
        "peak_bytes": torch.cuda.max_memory_allocated()
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }
