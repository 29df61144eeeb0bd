"""google-tunix's sampler on the same prompts: the process that `bench.sampler` compares with.

Needs google-tunix. Its sampler draws one completion per prompt, so siblings are given as copies of
their prompt. As on our side, compiling is not timed.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from malt_jax.bench.sampler_peer import PROBE
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

    def timed(prompts: Sequence[Sequence[int]], batch: int, limit: int) -> tuple[int, float]:
        began, compiled, tokens = time.perf_counter(), clock.seconds, 0
        # Prompts of similar length share a batch, so that little padding is computed.
        ordered = sorted(prompts, key=len)
        for first in range(0, len(ordered), batch):
            tokens += generate(ordered[first : first + batch], limit)
        return tokens, time.perf_counter() - began - (clock.seconds - compiled)

    sizes = [int(size) for size in job["peer_batches"].split(",")]
    longest = job["max_new_tokens"]
    probe = {size: timed(levels[1][: max(sizes)], size, min(longest, PROBE)) for size in sizes}
    batch = max(sizes, key=lambda size: probe[size][0] / probe[size][1])
    results = [timed(level, batch, longest) for level in levels]
    tokens, seconds = (sum(column) for column in zip(*results, strict=True))
    return {
        "tokens_per_s": tokens / seconds,
        "tokens": tokens,
        "seconds": seconds,
        "compile_s": clock.seconds,
        "batch": batch,
        "tokens_per_s_by_batch": {size: t / s for size, (t, s) in probe.items()},
        "tunix": version("google-tunix"),
    }


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
