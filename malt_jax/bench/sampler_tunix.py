"""google-tunix's sampler on the same prompts: the process that `bench.sampler` compares with.

Needs google-tunix. Its sampler draws one completion per prompt, so siblings are given as copies of
their prompt. As on our side, compiling is not timed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from malt_jax.bench.batches import at_fastest_batch
from malt_jax.bench.train import CompileClock
from malt_jax.bench.tunix_model import load_tunix

MULTIPLE = 64
"""Prompts are padded to multiples of this. tunix's own choice, powers of two, pads more."""


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Generated tokens per second over all roles' prompts, at the fastest of the batch sizes."""
    from tunix.generate.sampler import CacheConfig, Sampler

    from malt_jax.models.tokenizer import load_tokenizer

    model = load_tunix(job["model"], job["dtype"])
    spec = model.config
    with open(job["prompts"]) as file:
        levels = json.load(file)
    ends = list(load_tokenizer(Path(job["model"])).end_ids)
    used = {token for level in levels for prompt in level for token in prompt}
    # Its masks leave out every padding token, so that one must occur in no prompt.
    unused = max(set(range(spec.vocab_size)) - used - set(ends))
    clock = CompileClock()

    @functools.cache
    def sampler(places: int) -> Any:
        """One sampler per size, so that no cache is larger than its batch needs."""
        cache = CacheConfig(places, spec.num_layers, spec.num_kv_heads, spec.head_dim)
        return Sampler(model, _TokenIds(ends[0], unused), cache)

    def generate(prompts: Sequence[Sequence[int]], limit: int) -> int:
        longest = -(-max(map(len, prompts)) // MULTIPLE) * MULTIPLE
        out = sampler(longest + limit)(
            [prompt for prompt in prompts for _ in range(job["branch"])],
            max_generation_steps=limit,
            max_prompt_length=longest,
            eos_tokens=ends,
            temperature=job["temperature"],
            # Selects drawing in place of the most probable token; 1 filters nothing.
            top_p=1.0,
        )
        # The end token is cut off; only a completion that reached the limit has none.
        return sum(min(len(tokens) + 1, limit) for tokens in out.tokens)

    found = at_fastest_batch(job, levels, generate, compiling=lambda: clock.seconds)
    return {**found, "compile_s": clock.seconds, "tunix": version("google-tunix")}


class _TokenIds:
    """The tokenizer that tunix's sampler asks for, for prompts that are token ids already."""

    def __init__(self, end: int, padding: int):
        self._end, self._padding = end, padding

    def encode(self, prompt: Sequence[int]) -> list[int]:
        return list(prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        return ""

    def bos_id(self) -> None:
        """None: a prompt has its first token already."""

    def eos_id(self) -> int:
        return self._end

    def pad_id(self) -> int:
        return self._padding
