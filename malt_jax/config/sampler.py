"""The config section of the sampler: its memory, its batch sizes and its chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check, check_range


@dataclass(frozen=True)
class SamplerConfig:
    """How the sampler uses its devices. No field changes what is drawn, except for rounding."""

    rows: int = 0
    """Completions that decode at a time, over all devices, at most; 0: the platform's best number.
    Where their caches do not fit, as those of long prompts may not, as many as fit."""
    width: int = 0
    """Completions of one prompt that share one copy of its keys and values, at most; 0: 4, or with
    `attention: pallas` as many as the kernel has room for: 64 for Llama 3.1 8B in bfloat16."""
    streams: int = 0
    """Batches that decode side by side and share the rows; 0: 2 on a CPU with several cores, 1
    elsewhere."""
    memory_gb: float = 0.0
    """GiB per device for caches and temporaries; 0: 80% of what is free, on a CPU
    at most 2."""
    prefix_buckets: tuple[int, ...] = (
        64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048,
        3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768,
    )  # fmt: skip
    """Prompt lengths in tokens that programs are compiled for; longer prompts double the last."""
    new_token_buckets: tuple[int, ...] = (
        16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096,
    )  # fmt: skip
    """Completion lengths in tokens that programs are compiled for; longer ones double the last."""
    prefill_tokens: int = 0
    """Tokens per prefill call and shard of the mesh; 0: 256 on a CPU, 4096 elsewhere."""
    prefill_lane: int = 0
    """Tokens per chunk of a prompt in a prefill call; a prompt's padding is less than one chunk. 0:
    16 on a CPU, 128 elsewhere."""
    chunk_steps: int = 16
    """Decode steps that the device takes between two visits of the host, at most."""
    weights: Literal["auto", "int8"] = "auto"
    """`auto`: the weights as loaded; `int8`: a rounded copy beside them, with one scale per output
    channel, which takes more memory and is read faster. `model.quantize` rounds them for all."""
    cache: Literal["auto", "int8"] = "auto"
    """Keys and values. `auto`: the weights' dtype, float32 on a CPU; `int8`: rounded, a scale per
    token and head."""
    attention: Literal["auto", "xla", "pallas"] = "auto"
    """Implementation of decode attention. `xla`: matrix products over whole caches; `pallas`: a TPU
    kernel that reads the valid part only; `auto`: xla, until the kernel was measured on a TPU."""
    cache_dir: str | None = "auto"
    """Folder that keeps compiled programs between runs; `auto`: the user's cache, null: none."""

    def __post_init__(self):
        check_range(self, "rows", "width", "streams", "memory_gb", least=0)
        check_range(self, "prefill_tokens", "prefill_lane", least=0)
        check_range(self, "chunk_steps", least=1)
        for name in ("prefix_buckets", "new_token_buckets"):
            sizes = getattr(self, name)
            # Every size is compared with the one before it, and the first one with 0.
            rising = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
            check(
                bool(sizes) and rising,
                f"{name}: found {list(sizes)}, allowed: rising sizes of 1 or more.",
            )
