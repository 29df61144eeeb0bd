"""Where a Hugging Face checkpoint holds each parameter: one table for loading and export.

A parameter here has a path such as `("layers", 3, "q", "kernel")`. Kernels are `[in, out]` here and
`[out, in]` in the checkpoint, so they are transposed on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from malt_jax.models.checkpoint import HEAD
from malt_jax.models.spec import ModelSpec

PROJECTIONS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
FUSED = {"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")}
"""Phi: tensors that hold several projections, one after the other."""
NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
# `post_attention_layernorm` means two things: in Llama the norm before the MLP, and with norms
# after each branch the one that follows attention.
POST_NORMS = {
    **NORMS,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
MIXTURES = {
    "separate": {
        "router": "mlp.gate",
        "expert_gate": "mlp.experts.{}.gate_proj",
        "expert_up": "mlp.experts.{}.up_proj",
        "expert_down": "mlp.experts.{}.down_proj",
    },
    "mixtral": {
        "router": "block_sparse_moe.gate",
        "expert_gate": "block_sparse_moe.experts.{}.w1",
        "expert_up": "block_sparse_moe.experts.{}.w3",
        "expert_down": "block_sparse_moe.experts.{}.w2",
    },
    "interleaved": {
        "router": "mlp.router",
        "expert_gate": "mlp.experts.gate_up_proj",
        "expert_up": "mlp.experts.gate_up_proj",
        "expert_down": "mlp.experts.down_proj",
    },
}
"""By `Mixture.layout`: the tensors of router and experts."""
EMBEDDING = "model.embed_tokens.weight"


class Part(NamedTuple):
    """Which outputs of a stored tensor belong to a parameter: every `step`-th from `first` on."""

    first: int
    step: int
    whole: int
    """How many outputs the stored tensor has."""


@dataclass(frozen=True)
class Source:
    """The checkpoint's tensors that make up one parameter."""

    names: tuple[str, ...]
    """One tensor; with a leading layer axis one per layer; with experts apart, one per layer and
    expert."""
    stacked: bool
    transposed: bool
    experts: int = 0
    """How many tensors a layer's parameter is stacked from, one per expert; 0: it is one tensor."""
    part: Part | None = None
    """Where the tensor holds other parameters as well."""

    def layer(self, index: int) -> Source:
        """The source of one layer of a parameter with a leading layer axis."""
        count = max(self.experts, 1)
        names = self.names[index * count : (index + 1) * count]
        return Source(names, False, self.transposed, self.experts, self.part)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each tensor, given that of the parameter."""
        shape = shape[int(self.stacked) + int(self.experts > 0) :]
        if self.part is not None:
            shape = (*shape[:-1], self.part.whole)
        return shape[::-1] if self.transposed else shape

    def place(self, index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where a slice of a parameter of `shape`, without leading axes, is in its tensor."""
        index = tuple(slice(*one.indices(size)) for one, size in zip(index, shape, strict=True))
        if self.part is not None:
            first, step, _ = self.part
            last = index[-1]
            end = first + (last.stop - 1) * step + 1
            index = (*index[:-1], slice(first + last.start * step, end, step))
        return index[::-1] if self.transposed else index


def source_of(spec: ModelSpec, path: tuple[Any, ...]) -> Source:
    """The tensors of the parameter at `path`; where layers are stacked, paths have no index."""
    match path:
        # [vocab, d_model] on both sides: the table is looked up by row, and the head's logits are
        # split into blocks of the vocabulary.
        case ("embed",):
            return Source((EMBEDDING,), stacked=False, transposed=False)
        case ("head",):
            return Source((HEAD,), stacked=False, transposed=False)
        case ("norm", "weight"):
            return Source(("model.norm.weight",), stacked=False, transposed=False)
        case ("layers", int(layer), *inner):
            layers, stacked = [layer], False
        case ("layers", *inner):
            layers, stacked = list(range(spec.num_layers)), True
        case _:
            raise ValueError(f"no such parameter: {path}")
    if inner == ["sinks"]:
        name, experts, transposed, part = "self_attn.sinks", 0, False, None
    else:
        module, leaf = map(str, inner)
        name, experts, transposed, part = _inner_source(spec, module, leaf)
    names = [f"model.layers.{layer}.{name}" for layer in layers]
    if experts:
        names = [one.format(expert) for one in names for expert in range(experts)]
    return Source(tuple(names), stacked, transposed, experts, part)


def _inner_source(spec: ModelSpec, module: str, leaf: str) -> tuple[str, int, bool, Part | None]:
    """A layer's parameter: the tensor's name in the layer, experts, transposed or not, part."""
    kernel = leaf == "kernel"
    suffix = ".bias" if leaf == "bias" else ".weight"
    mixture = spec.mixture
    if mixture is not None and module in (names := MIXTURES[mixture.layout]):
        if module == "router":
            return names[module] + suffix, 0, kernel, None
        if mixture.layout != "interleaved":
            return names[module] + suffix, mixture.experts, kernel, None
        # gpt-oss: one tensor of all experts, `[expert, in, out]` as here.
        first = {"expert_gate": 0, "expert_up": 1}.get(module)
        part = None if first is None else Part(first, 2, 2 * spec.d_mlp)
        return names[module] + ("_bias" if leaf == "bias" else ""), 0, False, part
    if spec.fused:
        for name, members in FUSED.items():
            if module in members:
                widths = [output_width(spec, member) for member in members]
                first = sum(widths[: members.index(module)])
                return name + suffix, 0, kernel, Part(first, 1, sum(widths))
    table = {**PROJECTIONS, **(POST_NORMS if spec.post_norms else NORMS)}
    return table[module] + suffix, 0, kernel, None


def output_width(spec: ModelSpec, target: str) -> int:
    """How many outputs a dense projection has."""
    if target in ("o", "down"):
        return spec.d_model
    if target in ("gate", "up"):
        return spec.d_mlp
    return spec.head_dim * (spec.heads if target == "q" else spec.kv_heads)
