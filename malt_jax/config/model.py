"""Config of the base model: its checkpoint and the dtype that it computes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check


@dataclass(frozen=True)
class ModelConfig:
    """The base model that all roles start from."""

    path: str = "quickstart"
    """A local Hugging Face directory, a hub name, or `quickstart` for the embedded tiny model."""
    revision: str | None = None
    """Hub revision: a branch, tag or commit."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and activations; auto: float32 on a CPU and bfloat16 on accelerators."""
    quantize: Literal["none", "int8"] = "none"
    """`int8`: the frozen base under trained adapters is rounded, with one scale per output channel,
    in search, training and answers alike."""

    def __post_init__(self):
        check(bool(self.path.strip()), "path: found nothing; name a folder or a model of the hub.")
