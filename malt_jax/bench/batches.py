"""How a peer's sampler is measured: at the batch size that is fastest for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

PROBE = 32
"""New tokens per completion while the batch size is chosen."""

Prompts = Sequence[Sequence[int]]


def at_fastest_batch(
    job: dict[str, Any],
    levels: Sequence[Prompts],
    generate: Callable[[Prompts, int], int],
    compiling: Callable[[], float] = lambda: 0.0,
) -> dict[str, Any]:
    """Tokens per second over all roles' prompts, at the batch size that the second role's chose.

    `generate` answers a batch of prompts within a limit of tokens and returns how many it drew.
    `compiling`: the seconds spent on compiling so far, which are not counted.
    """

    def timed(prompts: Prompts, batch: int, limit: int) -> tuple[int, float]:
        began, compiled, tokens = time.perf_counter(), compiling(), 0
        # Prompts of similar length share a batch, so that little padding is computed.
        ordered = sorted(prompts, key=len)
        for first in range(0, len(ordered), batch):
            tokens += generate(ordered[first : first + batch], limit)
        return tokens, time.perf_counter() - began - (compiling() - compiled)

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
        "batch": batch,
        "tokens_per_s_by_batch": {size: t / s for size, (t, s) in probe.items()},
    }
