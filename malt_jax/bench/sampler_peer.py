"""transformers' `generate` on the same prompts: the process that `bench.sampler` compares with.

Needs torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from malt_jax.bench.batches import at_fastest_batch


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Generated tokens per second over all roles' prompts, at the fastest of the batch sizes."""
    import torch
    from transformers import AutoModelForCausalLM

    from malt_jax.models.tokenizer import load_tokenizer

    device = "cuda" if job["device"] == "gpu" and torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), attn_implementation="sdpa"
    )
    model = model.to(device).eval()
    tokenizer = load_tokenizer(Path(job["model"]))
    ends = list(tokenizer.end_ids)

    def generate(prompts: Sequence[Sequence[int]], limit: int) -> int:
        # Padded on the left, so that all prompts end where their completions begin.
        longest = max(map(len, prompts))
        ids = torch.tensor([[ends[0]] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                do_sample=True,
                temperature=job["temperature"],
                # Set here, because the checkpoint's generation config may filter otherwise.
                top_k=0,
                top_p=1.0,
                max_new_tokens=limit,
                num_return_sequences=job["branch"],
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        return sum(_length(row, ends) for row in out[:, longest:].tolist())

    with open(job["prompts"]) as file:
        levels = json.load(file)
    # Warms up, so that what is done once at the first call is not timed.
    generate(levels[0][:1], 2)
    return {
        **at_fastest_batch(job, levels, generate),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _length(tokens: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens up to and with the first end token."""
    return next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
