"""The description of a decoder: the numbers that distinguish one family from another.

Without weights and without JAX, so that plans and lists start fast.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base frequency and context-length scaling.

    `kind` is `default`, `linear` (positions divided by `factor`) or `llama3` (low frequencies
    divided by `factor`, high ones kept, a smooth ramp between; Llama 3.1 and later).
    """

    theta: float
    # `factor` is read unless `kind` is `default`; the three after it by `llama3` only.
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelSpec:
    """One decoder-only transformer. Families differ in these fields and in nothing else."""

    family: str
    vocab: int
    d_model: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_mlp: int
    context: int
    """Longest sequence that the model was made for, in tokens."""
    rope: Rope
    local_rope: Rope | None = None
    """Rope of the sliding-window layers where it differs (Gemma 3)."""
    windows: tuple[int | None, ...] = ()
    """Per layer: sliding window in tokens, or None for full attention."""
    activation: str = "silu"
    """Gate activation: `silu` or `gelu_tanh`."""
    norm_eps: float = 1e-6
    norm_plus_one: bool = False
    """RMS norms scale by 1 + weight (Gemma)."""
    sandwich_norms: bool = False
    """Norms after attention and MLP as well as before (Gemma 2 and 3)."""
    qk_norm: bool = False
    # Three flags, because families differ: Qwen2 has biases on queries, keys and values only.
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    """The output head is the embedding table."""
    embed_scale: float = 1.0
    query_scale: float = 1.0
    """Queries are multiplied by this before the dot product with keys."""
    attention_softcap: float | None = None
    logit_softcap: float | None = None

    @property
    def has_windows(self) -> bool:
        return any(window is not None for window in self.windows)

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None
