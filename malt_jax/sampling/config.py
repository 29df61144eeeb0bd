"""What a user can set about the sampler: its memory, its shapes and its pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.settings import check


@dataclass(frozen=True)
class SamplerConfig:
    """How the sampler uses its devices. Nothing here changes what a request means."""

    slots: int = 0
    """Prompts held at a time, over all devices; 0: the platform's best batch, or what fits."""
    width: int = 1
    """Completions of one prompt that decode side by side, reading one shared prefix. 1 leaves no
    row idle; more reads less memory, but a slot then waits for its longest completion."""
    memory_gb: float = 0.0
    """GiB per device for caches and temporaries; 0: 80% of what is free."""
    prefix_buckets: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    """Prompt capacities there is a program for, in tokens."""
    new_token_buckets: tuple[int, ...] = (32, 128, 256, 512, 1024, 2048, 4096)
    """Completion capacities there is a program for, in tokens."""
    prefill_buckets: tuple[int, ...] = (32, 256)
    """By how many tokens a prompt grows in one prefill call."""
    prefill_tokens: int = 0
    """Tokens in one prefill call, over all its prompts; 0: 256 on a CPU, 4096 elsewhere."""
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
            ("slots", 0),
            ("width", 1),
            ("memory_gb", 0),
            ("prefill_tokens", 0),
            ("chunk_steps", 1),
        ):
            value = getattr(self, name)
            check(value >= least, f"{name}: found {value}, allowed: {least} or more.")
        for name in ("prefix_buckets", "new_token_buckets", "prefill_buckets"):
            sizes = getattr(self, name)
            rising = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
            check(
                bool(sizes) and rising,
                f"{name}: found {list(sizes)}, allowed: rising sizes of 1 or more.",
            )
