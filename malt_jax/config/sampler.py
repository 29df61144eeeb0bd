"""What a user can set about the sampler: its memory, its shapes and its pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check


@dataclass(frozen=True)
class SamplerConfig:
    """How the sampler uses its devices. Nothing here changes what a request means."""

    rows: int = 0
    """Completions that decode at a time, over all devices; 0: the platform's best batch, or what
    fits."""
    width: int = 0
    """Completions of one prompt that share one copy of its keys and values, at most; 0: 4."""
    streams: int = 0
    """Batches that decode side by side, each from a thread of its own, and share the rows; 0: 2 on
    a CPU of several cores, 1 elsewhere."""
    memory_gb: float = 0.0
    """GiB per device for caches and temporaries; 0: 80% of what is free."""
    prefix_buckets: tuple[int, ...] = (
        *(64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048),
        *(3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768),
    )
    """Prompt capacities there is a program for, in tokens; beyond the last, its doubles."""
    new_token_buckets: tuple[int, ...] = (
        *(16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096),
    )
    """Completion capacities there is a program for, in tokens; beyond the last, its doubles."""
    prefill_tokens: int = 0
    """Tokens in one prefill call on each part the rows are split into; 0: 256 on a CPU, 4096
    elsewhere."""
    prefill_lane: int = 0
    """Tokens of one prompt that stay together in a prefill call, so at most one less is padding at
    a prompt's end; 0: 16 on a CPU, 128 elsewhere."""
    chunk_steps: int = 16
    """Decode steps between two looks of the host, at most."""
    weights: Literal["auto", "int8"] = "auto"
    """`auto`: the weights as loaded; `int8`: rounded, with one scale an output channel."""
    cache: Literal["auto", "int8"] = "auto"
    """Keys and values. `auto`: the weights' dtype; `int8`: rounded, one scale a token and head."""
    attention: Literal["auto", "xla"] = "auto"
    """Attention path; `auto` is the best one checked on the platform."""
    cache_dir: str | None = "auto"
    """Keeps compiled programs between runs; `auto`: the user's cache folder, null: nowhere."""

    def __post_init__(self):
        for name, least in (
            ("rows", 0),
            ("width", 0),
            ("streams", 0),
            ("memory_gb", 0),
            ("prefill_tokens", 0),
            ("prefill_lane", 0),
            ("chunk_steps", 1),
        ):
            value = getattr(self, name)
            check(value >= least, f"{name}: found {value}, allowed: {least} or more.")
        for name in ("prefix_buckets", "new_token_buckets"):
            sizes = getattr(self, name)
            rising = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
            check(
                bool(sizes) and rising,
                f"{name}: found {list(sizes)}, allowed: rising sizes of 1 or more.",
            )
