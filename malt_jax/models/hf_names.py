"""Names of the parameters in a Hugging Face checkpoint: one table for loading and export.

A parameter here has a path such as `("layers", 3, "q", "kernel")`. Kernels are `[in, out]` here and
`[out, in]` in the checkpoint, so they are transposed on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
# `post_attention_layernorm` means two things: in Llama the norm before the MLP, and with sandwich
# norms the one that follows attention.
SANDWICH_NORMS = {
    **NORMS,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """The checkpoint's tensors that make up one parameter."""

    names: tuple[str, ...]
    """One tensor, or for a parameter with a leading layer axis one per layer."""
    stacked: bool
    transposed: bool


def source_of(spec: ModelSpec, path: tuple[Any, ...]) -> Source:
    """The tensors of the parameter at `path`; where layers are stacked, paths have no index."""
    match path:
        # The table is looked up by row, so it is [vocab, d_model] on both sides. The head is a
        # matrix product like the kernels, and is transposed like them.
        case ("embed",):
            return Source(("model.embed_tokens.weight",), stacked=False, transposed=False)
        case ("head",):
            return Source((HEAD,), stacked=False, transposed=True)
        case ("norm", "weight"):
            return Source(("model.norm.weight",), stacked=False, transposed=False)
        case ("layers", int(layer), module, leaf):
            layers, stacked = [layer], False
        case ("layers", module, leaf):
            layers, stacked = list(range(spec.num_layers)), True
        case _:
            raise ValueError(f"no such parameter: {path}")
    norms = SANDWICH_NORMS if spec.sandwich_norms else NORMS
    inner = {**PROJECTIONS, **norms}[str(module)] + (".bias" if leaf == "bias" else ".weight")
    names = tuple(f"model.layers.{layer}.{inner}" for layer in layers)
    return Source(names, stacked, transposed=leaf == "kernel")
