"""The layout of PEFT adapters: where each factor of an adapter is in adapter_model.safetensors.

PEFT names a factor by the place of its projection in the transformers model, and stores it as
`[rank, in]` (lora_A) or `[out, rank]` (lora_B).

A projection that a checkpoint fuses from several (Phi) has one pair of factors there. Pairs of the
parts become one: their A are stacked along the rank, and their B are the blocks of a block-diagonal
matrix. All projections then get this larger rank, padded with zeros, since some readers of adapters
know a single rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from malt_jax.models.hf_names import FUSED, MIXTURES, PROJECTIONS, output_width
from malt_jax.models.lora import projections
from malt_jax.models.peft_modules import expert_names
from malt_jax.models.spec import ModelSpec

Pair = dict[str, Any]
"""`a` [in, rank] and `b` [rank, out], with a leading axis of experts where there are any."""
SIDES = {"a": "lora_A", "b": "lora_B"}
PREFIX, TOWER_PREFIX = "base_model.model.model.", "base_model.model.model.language_model."


def has_layout(spec: ModelSpec, targets: tuple[str, ...]) -> bool:
    """Whether PEFT has a place for adapters on these projections."""
    return not (_interleaved(spec) and any(target.startswith("expert_") for target in targets))


def module_names(spec: ModelSpec, target: str) -> tuple[str, ...]:
    """The modules of a layer that hold a projection; an expert's one has one per expert."""
    if not target.startswith("expert_"):
        return (_fused_name(spec, target) or PROJECTIONS[target],)
    assert spec.mixture is not None
    if not has_layout(spec, (target,)):
        raise ValueError(f"PEFT has no layout for {target} of {spec.family}")
    name = MIXTURES[spec.mixture.layout][target]
    return tuple(name.format(expert) for expert in range(spec.mixture.experts))


def exported_rank(spec: ModelSpec, targets: tuple[str, ...], rank: int) -> int:
    """The rank that an adapter has in PEFT's layout."""
    if not spec.fused:
        return rank
    return rank * max(
        [1, *(sum(member in targets for member in members) for members in FUSED.values())]
    )


def to_peft(spec: ModelSpec, layers: list[Mapping[str, Pair]]) -> dict[str, np.ndarray]:
    """The tensors of an adapter file, of one adapter's factors as NumPy arrays."""
    tensors = {}
    for i, layer in enumerate(layers):
        prefix = f"{TOWER_PREFIX if spec.tower else PREFIX}layers.{i}."
        for name, pair in _modules(spec, layer).items():
            for side, value in sorted(pair.items()):
                tensors[f"{prefix}{name}.{SIDES[side]}.weight"] = value.astype(np.float32).T
    return tensors


def _modules(spec: ModelSpec, layer: Mapping[str, Pair]) -> dict[str, Pair]:
    """One layer's pairs by the name of their module."""
    modules: dict[str, Pair] = {}
    for target, pair in sorted(layer.items()):
        names = module_names(spec, target)
        for expert, name in enumerate(names):
            if target.startswith("expert_"):
                modules[name] = {side: value[expert] for side, value in pair.items()}
            elif not spec.fused:
                modules[name] = pair
            elif name not in modules:
                modules[name] = _fused(spec, name, layer)
    return modules


def _fused(spec: ModelSpec, name: str, layer: Mapping[str, Pair]) -> Pair:
    """The pair of a module of a fused checkpoint, of the common larger rank."""
    rank = next(iter(layer.values()))["a"].shape[-1]
    whole = exported_rank(spec, tuple(layer), rank)
    members = FUSED.get(name) or tuple(t for t, module in PROJECTIONS.items() if module == name)
    widths = [output_width(spec, member) for member in members]
    d_in = projections(spec)[members[0]].inputs[0]
    a, b = np.zeros((d_in, whole), np.float32), np.zeros((whole, sum(widths)), np.float32)
    block = 0
    for i, member in enumerate(members):
        if member in layer:
            here, start = slice(block * rank, (block + 1) * rank), sum(widths[:i])
            a[:, here] = layer[member]["a"]
            b[here, start : start + widths[i]] = layer[member]["b"]
            block += 1
    return {"a": a, "b": b}


def from_peft(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> list[dict[str, Pair]]:
    """The pairs of each layer; ValueError names a tensor that the model has no place for.

    A pair of a fused module becomes one of equal rank for each of its parts. Experts have one pair
    each, as `peft_modules.apart` leaves them.
    """
    left = {_plain(name): name for name in tensors}
    layers: list[dict[str, Pair]] = []
    for i in range(spec.num_layers):
        layer: dict[str, Pair] = {}
        used = set()
        for target in projections(spec):
            experts = target.startswith("expert_")
            modules = (expert_names if experts else module_names)(spec, target)
            names = [f"layers.{i}.{name}" for name in modules]
            keys = {side: [f"{name}.{SIDES[side]}.weight" for name in names] for side in SIDES}
            if not all(key in left for key in keys["a"] + keys["b"]):
                continue
            used |= {*keys["a"], *keys["b"]}
            found = {side: [tensors[left[key]].T for key in keys[side]] for side in SIDES}
            if experts:
                layer[target] = {side: np.stack(values) for side, values in found.items()}
            else:
                layer[target] = {
                    "a": found["a"][0],
                    "b": found["b"][0][:, _outputs(spec, target)],
                }
        for key in used:
            left.pop(key)
        layers.append(layer)
    if left:
        raise ValueError(sorted(left.values())[0])
    return layers


def without_zeros(layers: list[dict[str, Pair]], rank: int) -> tuple[list[dict[str, Pair]], int]:
    """The same products by factors of the smallest common rank, and that rank.

    Of the factors of a fused module each part uses its own block, and the others meet zeros: with
    them an adapter that is exported and read again would grow each time.
    """

    def used_ranks(pair: Pair) -> np.ndarray:
        used = pair["a"].any(-2) & pair["b"].any(-1)
        return used.any(0) if used.ndim == 2 else used  # by any of the experts

    kept = [{name: used_ranks(pair) for name, pair in layer.items()} for layer in layers]
    smaller = max((int(used.sum()) for layer in kept for used in layer.values()), default=0)
    if not 0 < smaller < rank:
        return layers, rank

    def shrunk(pair: Pair, used: np.ndarray) -> Pair:
        a, b = pair["a"][..., used], pair["b"][..., used, :]
        more, lead = smaller - a.shape[-1], [(0, 0)] * (a.ndim - 2)
        return {
            "a": np.pad(a, (*lead, (0, 0), (0, more))),
            "b": np.pad(b, (*lead, (0, more), (0, 0))),
        }

    return [
        {name: shrunk(pair, kept[i][name]) for name, pair in layer.items()}
        for i, layer in enumerate(layers)
    ], smaller


def _plain(name: str) -> str:
    """A tensor's name from `layers.` on, whatever classes are around the text model.

    Of an adapter that was saved without PEFT's own function, the names hold that of the adapter.
    """
    name = name.replace(".default.weight", ".weight")
    for prefix in (
        TOWER_PREFIX, "base_model.model.language_model.model.", PREFIX, "base_model.model."
    ):  # fmt: skip
        if name.startswith(prefix + "layers."):
            return name.removeprefix(prefix)
    return name


def _interleaved(spec: ModelSpec) -> bool:
    return spec.mixture is not None and spec.mixture.layout == "interleaved"


def _fused_name(spec: ModelSpec, target: str) -> str | None:
    names = [name for name, members in FUSED.items() if spec.fused and target in members]
    return names[0] if names else None


def _outputs(spec: ModelSpec, target: str) -> slice:
    """Which outputs of its module a projection has."""
    if (name := _fused_name(spec, target)) is None:
        return slice(None)
    members = FUSED[name]
    start = sum(output_width(spec, member) for member in members[: members.index(target)])
    return slice(start, start + output_width(spec, target))
