"""TRL + PEFT on the same token ids: the worker process `bench.train` compares with.

    python -m malt_jax.bench.train_peer '{"model": DIR, "stage": "sft", ...}'

Prints one JSON object. Needs torch, trl and peft, which are no dependencies of the package.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Useful tokens a second after the first step, and the process's peak memory."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from malt_jax.bench.lengths import dpo_examples, sft_examples

    class Clock(TrainerCallback):
        def __init__(self):
            self.steps: list[tuple[float, float]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps.append((time.perf_counter(), time.process_time()))

    class Sft(SFTTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset  # token ids already: both sides must train on the same ones

    class Dpo(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    gpu = job["device"] == "gpu" and torch.cuda.is_available()
    half = job["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    vocab, count = model.config.vocab_size, job["batch"] * job["steps"]
    lora = LoraConfig(
        r=job["rank"], lora_alpha=2 * job["rank"], target_modules="all-linear", lora_dropout=0.0
    )
    common = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job["batch"],
        "num_train_epochs": 1,
        "max_length": None,
        "use_cpu": not gpu,
        "bf16": half,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "gradient_checkpointing": job["checkpointing"],
        "dataloader_pin_memory": False,
    }
    if job["stage"] == "sft":
        examples = sft_examples(count, vocab, 0)
        rows = [
            {
                "input_ids": [*e.prompt_ids, *e.completion_ids],
                "labels": [-100] * len(e.prompt_ids) + [*e.completion_ids],
            }
            for e in examples
        ]
        lengths = [len(row["input_ids"]) for row in rows]
        trainer_type, config = Sft, SFTConfig(**common)
    else:
        examples = dpo_examples(count, vocab, 0)
        rows = [
            {
                "prompt_ids": [*e.prompt_ids],
                "chosen_ids": [*e.chosen_ids],
                "rejected_ids": [*e.rejected_ids],
            }
            for e in examples
        ]
        lengths = [sum(len(e.prompt_ids) + len(c) for c in e.completions) for e in examples]
        precompute = job["precompute"]
        config = DPOConfig(**common, beta=0.2, precompute_ref_log_probs=precompute)
        trainer_type = Dpo
    clock = Clock()
    began = time.perf_counter()
    trainer = trainer_type(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[clock],
    )
    order = [i for batch in trainer.get_train_dataloader().batch_sampler for i in batch]
    prepared = time.perf_counter()
    trainer.train()
    first = sum(lengths[i] for i in order[: job["batch"]])
    seconds, cpu = (b - a for a, b in zip(clock.steps[0], clock.steps[-1], strict=True))
    rest = sum(lengths) - first
    return {
        "tokens_per_s": rest / seconds,
        "seconds": seconds,
        "cpu_tokens_per_s": rest / cpu,
        "prepare_s": prepared - began,
        "peak_bytes": torch.cuda.max_memory_allocated()
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
