"""Reads a PEFT adapter, from a folder or the hub, as an adapter of this package."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from malt_jax.checks import show
from malt_jax.config.lora import LoraConfig
from malt_jax.errors import UserError
from malt_jax.models.hf_fields import Fields, read_json, unreadable
from malt_jax.models.hub import ADAPTER_FILES, HUB_NAME, adapter_folder
from malt_jax.models.lora import Adapter, projections, stack_adapter, unstack_adapter
from malt_jax.models.peft_layout import SIDES, from_peft, without_zeros
from malt_jax.models.peft_modules import PLAIN_PATTERN, Patterns, apart, evened
from malt_jax.models.spec import ModelSpec

CONFIG, WEIGHTS = ADAPTER_FILES
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "lora_bias": (None, False),
    # Others, such as `pissa`, take a part out of the base, so that the factors fit no other base.
    "init_lora_weights": (None, False, "gaussian", "eva", "orthogonal", True),
}
"""Fields of adapter_config.json and what they may be: plain LoRA and nothing else."""
FREE = (
    "r", "lora_alpha", "use_rslora", "base_model_name_or_path", "revision", "peft_version",
    "task_type", "inference_mode", "auto_mapping", "lora_dropout", "qalora_group_size",
    # The tensors say which modules have factors.
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "target_parameters",
    # Read by `_patterns`.
    "rank_pattern", "alpha_pattern",
    # How the factors began, of the ways of `init_lora_weights` above.
    "eva_config", "corda_config", "lora_ga_config", "loftq_config",
    # Where the base was split, and what holds for saved modules only.
    "megatron_config", "megatron_core", "ensure_weight_tying",
)  # fmt: skip
"""Fields that may have any value: read elsewhere, or without an effect on plain LoRA."""


def load_adapter(path: str | os.PathLike, spec: ModelSpec) -> tuple[Adapter, LoraConfig]:
    """The adapter, in NumPy float32 and by layer, and the config that it was made with.

    `path`: a folder with adapter_config.json, one that holds it as `adapter`, or a name on the hub.
    UserError in one sentence for what is no plain LoRA, or does not fit the model.
    """
    folder = adapter_folder(path)
    lora, patterns, version = _config(folder / CONFIG)
    tensors = stored = _tensors(folder / WEIGHTS)
    for name in stored:
        if not any(f".{side}." in name for side in SIDES.values()):
            raise UserError(
                f"{folder / WEIGHTS}: {name} is no LoRA factor of a projection, and nothing else "
                "of an adapter is read; choose another adapter, or merge this one into its base."
            )
    try:
        tensors, modules = apart(spec, stored, version)
    except ValueError as error:
        raise UserError(
            f"{folder / WEIGHTS}: {error}, so these adapters of a layer's experts in PEFT's fused "
            "layout cannot be read; export them from here in their own form, or merge them into "
            "the base."
        ) from error
    if patterns.ranks or patterns.alphas:
        try:
            tensors, lora = evened(tensors, modules, lora, patterns)
        except ValueError as error:
            raise UserError(f"{folder / WEIGHTS}: {error}; export or download it again.") from error
    try:
        layers = from_peft(spec, tensors)
    except ValueError as error:
        raise UserError(
            f"{folder / WEIGHTS}: {error} has no place in this {spec.family} model: adapters are "
            "read for its projections, of all experts alike. Choose an adapter that was made for "
            "it; what it has on a head, an embedding or a router must be merged into its base."
        ) from error
    targets = tuple(t for t in projections(spec) if any(t in layer for layer in layers))
    if not targets:
        raise UserError(f"{folder / WEIGHTS}: holds no factors; export or download it again.")
    for layer in layers:
        for target, pair in layer.items():
            _check_shape(folder, spec, lora.rank, target, pair)
    # Experts' gate and up have a pair in common there, of which each may use its own block.
    if spec.fused or tensors.keys() != stored.keys():
        scale = lora.scale
        layers, rank = without_zeros(layers, lora.rank)
        lora = replace(lora, rank=rank, alpha=scale * (rank**0.5 if lora.rslora else rank))
    filled = [{t: _pair(spec, lora.rank, t, layer.get(t)) for t in targets} for layer in layers]
    return Adapter(filled, lora.scale), replace(lora, targets=targets)


def adapter_base(folder: Path) -> tuple[str, str | None]:
    """The model that a PEFT adapter was made for, as its config names it, and its revision."""
    config = read_json(folder / CONFIG)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / CONFIG}: base_model_name_or_path is {show(base)}, so the model that the "
            "adapter belongs to is unknown; write its name there."
        )
    if not (revision is None or isinstance(revision, str)):
        raise UserError(f"{folder / CONFIG}: revision is {show(revision)}, expected a text.")
    return base, revision


def fitted(
    adapter: Adapter, own: LoraConfig, fresh: Adapter, lora: LoraConfig, place: str
) -> Adapter:
    """The same update in the structure that all adapters of a run share, that of `fresh`.

    Ranks and projections that the adapter lacks begin as those of a new adapter do. The factor `b`
    takes up the quotient of the scales. UserError if the run's structure has no room for it.
    """
    check_room(own, lora, place)

    def pair(new: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
        # With zeros on both sides no gradient would ever reach the pair.
        if old is None or not (old["a"].any() or old["b"].any()):
            return new
        b = old["b"] * (adapter.scale / fresh.scale)
        # Neither do ranks that are zero on both sides, which no gradient would reach.
        dead = ~(old["a"].any(-2) | old["b"].any(-1))
        a = np.where(dead[..., None, :], new["a"][..., : own.rank], old["a"])
        b = np.where(dead[..., :, None], new["b"][..., : own.rank, :], b)
        # Further ranks add nothing yet, since one side of a new adapter is zero.
        return {
            "a": new["a"].at[..., : own.rank].set(a),
            "b": new["b"].at[..., : own.rank, :].set(b),
        }

    layers = [
        {target: pair(new, layer.get(target)) for target, new in fresh_layer.items()}
        for fresh_layer, layer in zip(unstack_adapter(fresh).layers, adapter.layers, strict=True)
    ]
    joined = replace(fresh, layers=layers)
    return stack_adapter(joined) if fresh.stacked else joined


def check_room(own: LoraConfig, lora: LoraConfig, place: str) -> None:
    """UserError if adapters of the config `lora` have no room for one of the config `own`."""
    if own.rank > lora.rank or set(own.targets) - set(lora.targets):
        raise UserError(
            f"{place}: its rank is {own.rank} and its targets are {', '.join(own.targets)}, but "
            f"the run's adapters have rank {lora.rank} and targets {', '.join(lora.targets)}; set "
            "train.lora.rank and train.lora.targets to no less."
        )


def other_base(path: str | os.PathLike, base: str) -> str | None:
    """A warning if an adapter names another model than `base`, over which it is to start.

    Only names on the hub are compared, and of them the last parts: one model may lie in folders of
    any name, and under several owners.
    """
    named = read_json(adapter_folder(path) / CONFIG).get("base_model_name_or_path")
    names = [name for name in (named, base) if isinstance(name, str) and HUB_NAME.fullmatch(name)]
    if len(names) < 2 or any(os.path.isdir(name) for name in names):
        return None
    if len({name.rpartition("/")[2].casefold() for name in names}) < 2:
        return None
    return (
        f"{os.fspath(path)} says that it was made for {named}, and starts over {base}; if these "
        "are two models, its answers mean little"
    )


def _config(path: Path) -> tuple[LoraConfig, Patterns, tuple[int, ...]]:
    """The config of most modules, what others have, and the version of PEFT that wrote it."""
    fields = Fields(path, read_json(path))
    # A field of a newer PEFT may stand for another method, unless it is switched off.
    unknown = fields.data.keys() - PLAIN.keys() - {*FREE}
    off: tuple[Any, ...] = (False, [], {}, None)
    for key, allowed in {**PLAIN, **dict.fromkeys(sorted(unknown), off)}.items():
        value = fields.data.get(key)
        if value not in allowed:
            raise fields.refuse(
                key, f"= {show(value)} is not supported; expected {show(allowed[-1])}, plain LoRA"
            )
    lora = LoraConfig(
        rank=fields.integer("r", largest=4096),
        alpha=fields.number("lora_alpha"),
        rslora=fields.flag("use_rslora"),
    )
    ranks, alphas = _patterns(fields, "rank_pattern"), _patterns(fields, "alpha_pattern")
    patterns = Patterns(
        {pattern: ranks.integer(pattern, largest=4096) for pattern in ranks.data},
        {pattern: alphas.number(pattern) for pattern in alphas.data},
    )
    version = re.findall(r"[0-9]{1,6}", str(fields.data.get("peft_version")))[:2]
    return lora, patterns, tuple(int(part) for part in version)


def _patterns(fields: Fields, key: str) -> Fields:
    """What a field says of single modules."""
    if not fields.data.get(key):
        return Fields(fields.path, {})
    for pattern in fields.section(key).data:
        if not PLAIN_PATTERN.fullmatch(pattern):
            raise fields.refuse(
                key,
                f"holds {show(pattern)}: expected names of modules, such as 'q_proj' or "
                "'layers.3.mlp.down_proj', since other regular expressions are not read",
            )
    return fields.section(key)


def _tensors(path: Path) -> Mapping[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise UserError(f"{path}: missing; save the adapter as safetensors.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise unreadable(path, f"not a whole safetensors file ({error})") from error
    for name, value in tensors.items():
        if not np.isfinite(value.astype(np.float32)).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; train or download it again.")
    return tensors


def _shapes(spec: ModelSpec, rank: int, target: str) -> dict[str, tuple[int, ...]]:
    (d_in, _), (d_out, _), experts = projections(spec)[target]
    lead = (experts,) if experts else ()
    return {"a": (*lead, d_in, rank), "b": (*lead, rank, d_out)}


def _pair(
    spec: ModelSpec, rank: int, target: str, pair: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """One layer's factors in float32; a layer without them gets such as change nothing."""
    if pair is None:
        shapes = _shapes(spec, rank, target)
        return {side: np.zeros(shape, np.float32) for side, shape in shapes.items()}
    return {side: np.asarray(x, np.float32) for side, x in pair.items()}


def _check_shape(
    folder: Path, spec: ModelSpec, rank: int, target: str, pair: dict[str, np.ndarray]
) -> None:
    for side, shape in _shapes(spec, rank, target).items():
        if pair[side].shape != shape:
            raise _other_base(
                folder,
                f"factor {side} of {target} has shape {list(pair[side].shape)}, this model and "
                f"rank {rank} want {list(shape)}",
            )


def _other_base(folder: Path, finding: str) -> UserError:
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    return UserError(
        f"{folder / WEIGHTS}: {finding}; it was made for {show(base)}, so set model.path to that "
        "model or choose another adapter."
    )
