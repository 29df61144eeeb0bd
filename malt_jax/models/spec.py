"""The description of a decoder: the numbers that distinguish one family from another.

Without weights and without JAX, so that plans and lists start fast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base frequency and context-length scaling.

    `kind` is one of
    - `default`: nothing is scaled,
    - `linear`: positions are divided by `factor`,
    - `llama3`: low frequencies are divided by `factor`, high ones kept, with a smooth ramp between
      (Llama 3.1 and later),
    - `yarn`: the same with YaRN's ramp (arXiv 2309.00071),
    - `dynamic`: the base grows with the length of a sequence beyond `original_context`,
    - `longrope`: every frequency has a divisor of its own, from `short_factors` up to
      `original_context` tokens and from `long_factors` beyond (arXiv 2402.13753; Phi).
    """

    theta: float
    # Each kind reads those of these that its formula in `rope.py` names.
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """YaRN's ramp begins and ends at whole channels."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    magnitude: float = 1.0
    """Cosine and sine are multiplied by this (the attention factor of `yarn` and `longrope`)."""
    rotary_share: float = 1.0
    """The share of a head's channels that is rotated, from the first one on (Phi-4-mini)."""


@dataclass(frozen=True)
class Mixture:
    """The mixture of experts that stands in place of a layer's MLP."""

    experts: int
    chosen: int
    """Experts per token."""
    normalised: bool = False
    """The weights of the chosen experts are divided by their sum."""
    bias: bool = False
    """Router and experts have biases (gpt-oss)."""
    layout: str = "separate"
    """How a checkpoint stores experts: `separate` tensors, Mixtral's names for them (`mixtral`), or
    one tensor of all experts with the gate in its even columns (`interleaved`, gpt-oss)."""


STACKED_FROM = 64
"""Layers from which a model is stacked, so that training compiles one layer in place of all."""


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
    rope_layers: tuple[bool, ...] = ()
    """Per layer: whether queries and keys are rotated (SmolLM3); empty if they are in every one."""
    mixture: Mixture | None = None
    """Experts in place of the MLP, each of width `d_mlp`."""
    activation: str = "silu"
    """Gate activation: `silu`, `gelu_tanh` or `clamped_swiglu` (gpt-oss)."""
    swiglu_gain: float = 1.702
    """Gain of the sigmoid in `clamped_swiglu`."""
    swiglu_limit: float = 7.0
    """Largest gate and largest up-projection, by magnitude, of `clamped_swiglu`."""
    norm_eps: float = 1e-6
    norm_plus_one: bool = False
    """RMS norms scale by 1 + weight (Gemma)."""
    norm_in_float32: bool = False
    """RMS norms multiply by their weight before they round to the model's dtype (OLMo, gpt-oss)."""
    pre_norms: bool = True
    """Norms before attention and MLP (all families but OLMo 2 and 3)."""
    post_norms: bool = False
    """Norms after attention and MLP (OLMo 2 and 3; beside those before in Gemma 2 and 3)."""
    qk_norm: bool = False
    """Norms of queries and keys, before their rotation."""
    qk_norm_all_heads: bool = False
    """These norms are taken over all heads together (OLMo), not over each head."""
    # Three flags, because families differ: Qwen2 has biases on queries, keys and values only.
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    """The output head is the embedding table."""
    embed_scale: float = 1.0
    query_scale: float = 1.0
    """Queries are multiplied by this before the dot product with keys."""
    residual_scale: float = 1.0
    """What attention and MLP add to the residual stream is multiplied by this (Granite)."""
    attention_sinks: bool = False
    """Each head has a score that takes part in its softmax but has no value (gpt-oss)."""
    attention_softcap: float | None = None
    logit_divisor: float = 1.0
    """Logits are divided by this (Granite)."""
    logit_softcap: float | None = None
    tower: bool = False
    """The text tower of a multimodal checkpoint; its other tensors are left out."""
    fused: bool = False
    """The checkpoint has one tensor for q, k and v, and one for gate and up (Phi)."""

    @property
    def stacks_layers(self) -> bool:
        """Whether its layers are stacked (see `Decoder`), in runs, benchmarks and plans alike."""
        return self.num_layers >= STACKED_FROM

    @property
    def has_windows(self) -> bool:
        return any(window is not None for window in self.windows)

    @property
    def active_mlp(self) -> int:
        """MLP channels that one token goes through, in a mixture those of its experts together."""
        return self.d_mlp * (self.mixture.chosen if self.mixture else 1)

    @property
    def all_mlp(self) -> int:
        """MLP channels of a layer, in a mixture those of all its experts."""
        return self.d_mlp * (self.mixture.experts if self.mixture else 1)

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    def rotated(self, layer: int) -> bool:
        return self.rope_layers[layer] if self.rope_layers else True

    def first_layers(self, depth: int) -> ModelSpec:
        """The same model cut off after `depth` layers."""
        return replace(
            self,
            num_layers=depth,
            windows=self.windows[:depth],
            rope_layers=self.rope_layers[:depth],
        )
