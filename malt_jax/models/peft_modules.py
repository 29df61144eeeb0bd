"""Brings a PEFT adapter's modules to one form: one pair per projection, one rank, one scale.

PEFT can give single modules a rank and a scale of their own (`rank_pattern`, `alpha_pattern`). And
where transformers holds the weights of all experts of a layer in one array, PEFT has one pair for
all of them. Both are rewritten as plain pairs with the same update.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from malt_jax.config.lora import LoraConfig
from malt_jax.models.hf_names import MIXTURES
from malt_jax.models.spec import ModelSpec

PLAIN_PATTERN = re.compile(r"\^?(?:\.\*\\?\.)?(?:[\w-]|\\?\.)+")
"""Names of modules, from the model on or only their last parts, as PEFT itself writes them. Any
regular expression is allowed there, but one of a stranger's can take forever to match."""
FUSED = re.compile(
    r"(?P<experts>(?:.*\.)?layers\.\d+\.mlp\.experts)(?:\.base_layer)*"
    r"\.(?P<side>lora_[AB])(?:\.default)?\.weight"
)
"""The factors of all experts of a layer; where two arrays have adapters, one wraps the other."""
SWAPPED = (0, 21)
"""A version of PEFT that is known to take no family's outputs for its inputs."""


@dataclass(frozen=True)
class Patterns:
    """Ranks and alphas of single modules, by patterns of their names."""

    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def of(self, module: str, lora: LoraConfig) -> LoraConfig:
        """The config of one module."""
        return replace(
            lora,
            rank=_first(self.ranks, module, lora.rank),
            alpha=_first(self.alphas, module, lora.alpha),
        )


def _first(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # As PEFT: the first that matches from some dot on to the end. No model has longer names, which
    # would take long to match.
    known = patterns if len(module) < 256 else {}
    found = (value for key, value in known.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def module_of(name: str) -> str:
    """The module of a factor, as PEFT names it in the base model."""
    return re.split(r"\.lora_[AB]\.", name.removeprefix("base_model.model."))[0]


def evened(
    tensors: Mapping[str, np.ndarray],
    modules: Mapping[str, str],
    lora: LoraConfig,
    patterns: Patterns,
) -> tuple[dict[str, np.ndarray], LoraConfig]:
    """The same update by factors of one rank and one scale, and their config.

    Missing ranks are zeros, and `b` takes up the quotient of the scales. `modules`: the module of
    each tensor. ValueError for a factor of another rank than the patterns say.
    """
    own = {name: patterns.of(modules[name], lora) for name in tensors}
    rank = max((one.rank for one in own.values()), default=lora.rank)
    made = {}
    for name, value in tensors.items():
        axis = 1 if ".lora_B." in name else 0
        if value.ndim != 2 or value.shape[axis] != own[name].rank:
            raise ValueError(
                f"{name} has shape {list(value.shape)}, but r and rank_pattern of its config say "
                f"rank {own[name].rank}"
            )
        more = [(0, 0), (0, 0)]
        more[axis] = (0, rank - own[name].rank)
        value = np.pad(value.astype(np.float32), more)
        factor = own[name].scale / lora.scale
        if not np.isfinite(np.float32(factor)):
            raise ValueError(f"the scale of {name} is {factor:.3g} times that of the others")
        made[name] = value * np.float32(factor) if axis == 1 and factor != 1 else value
    alpha = lora.scale * (rank**0.5 if lora.rslora else rank)
    return made, replace(lora, rank=rank, alpha=alpha)


def expert_names(spec: ModelSpec, target: str) -> tuple[str, ...]:
    """The modules that an adapter of a layer's experts is read from, one per expert."""
    assert spec.mixture is not None
    layout = spec.mixture.layout
    # gpt-oss has no such modules. These are the names that `apart` gives to its experts.
    name = MIXTURES["separate" if layout == "interleaved" else layout][target]
    return tuple(name.format(expert) for expert in range(spec.mixture.experts))


def apart(
    spec: ModelSpec, tensors: Mapping[str, np.ndarray], version: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Pairs of single experts in place of those of all, and the module that each tensor is of.

    `version`: that of the PEFT which saved the adapter. ValueError says what cannot be read.
    """
    made: dict[str, np.ndarray] = {}
    modules: dict[str, str] = {}
    for name, value in tensors.items():
        match = FUSED.fullmatch(name)
        if match is None or spec.mixture is None:
            made[name], modules[name] = value, module_of(name)
        elif match["side"] == "lora_A":
            other = name.replace("lora_A", "lora_B")
            if other not in tensors:
                raise ValueError(f"{other} is missing")
            stem = match["experts"]
            part, a, b = _factors(spec, name, value, tensors[other], version)
            for target, factors in _projections(spec, part, a, b).items():
                for expert, one in enumerate(expert_names(spec, f"expert_{target}")):
                    where = stem.removesuffix("mlp.experts") + one
                    for side, x in zip(("lora_A", "lora_B"), factors, strict=True):
                        key = f"{where}.{side}.weight"
                        if key in made:
                            raise ValueError(f"{name} adapts {part} once more")
                        made[key], modules[key] = x[expert], f"{module_of(stem)}.{part}"
    return made, modules


def _factors(
    spec: ModelSpec, name: str, a: np.ndarray, b: np.ndarray, version: tuple[int, ...]
) -> tuple[str, np.ndarray, np.ndarray]:
    """The array that a pair belongs to, `[expert, rank, in]` and `[expert, out, rank]` of it."""
    assert spec.mixture is not None
    experts, interleaved = spec.mixture.experts, spec.mixture.layout == "interleaved"
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] % experts:
        raise ValueError(f"{name} of shape {list(a.shape)} does not fit {experts} experts")
    # The experts' A are one after the other; of B, those of one rank are.
    split_a = a.reshape(experts, -1, a.shape[1])
    split_b = b.reshape(b.shape[0], -1, experts).transpose(2, 0, 1)
    sides = {
        "gate_up_proj": (spec.d_model, 2 * spec.d_mlp),
        "down_proj": (spec.d_mlp, spec.d_model),
    }
    found = a.shape[1], b.shape[0]
    # Until some version PEFT took `[expert, out, in]` for `[expert, in, out]`, so that A belongs to
    # the outputs. Widths show it, except where both are equal.
    if not interleaved and found[0] == found[1] and version < SWAPPED:
        raise ValueError(f"{name} does not say which of its sides are inputs")
    for part, (inputs, outputs) in sides.items():
        if found == (inputs, outputs):
            return part, split_a, split_b
        if found == (outputs, inputs) and not interleaved:
            return part, split_b.transpose(0, 2, 1), split_a.transpose(0, 2, 1)
    raise ValueError(f"{name} is for experts of {found[0]} inputs and {found[1]} outputs")


def _projections(
    spec: ModelSpec, part: str, a: np.ndarray, b: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pairs of the projections that an array holds."""
    if part == "down_proj":
        return {"down": (a, b)}
    assert spec.mixture is not None
    if spec.mixture.layout == "interleaved":
        return {"gate": (a, b[:, 0::2]), "up": (a, b[:, 1::2])}
    return {"gate": (a, b[:, : spec.d_mlp]), "up": (a, b[:, spec.d_mlp :])}
