"""Reads the rotary position embedding of a config.json, in both spellings of transformers."""

from __future__ import annotations

import math

from malt_jax.checks import show
from malt_jax.models.hf_families import Family
from malt_jax.models.hf_fields import Fields
from malt_jax.models.spec import Rope

SLIDING, FULL = "sliding_attention", "full_attention"
LOCAL_THETA = 1e4
"""Of Gemma 3's layers with a sliding window."""


def read_ropes(fields: Fields, family: Family, head_dim: int) -> tuple[Rope, Rope | None]:
    """The rope of full-attention layers and, where it differs, of sliding-window layers."""
    theta = fields.number("rope_theta", 1e4)
    # transformers 4 gives the second rope a field of its own (Gemma 3) or none (OLMo 3), and never
    # scales it; transformers 5 gives each kind of layer a whole section.
    local_theta = LOCAL_THETA if family.architecture.startswith("Gemma") else theta
    local_theta = fields.number("rope_local_base_freq", local_theta)
    if not fields.data.get("rope_parameters"):  # transformers 4
        wide = _rope(fields, _section(fields, "rope_scaling"), family, theta, head_dim)
        return wide, Rope(local_theta) if family.two_ropes else None
    parameters = fields.section("rope_parameters")
    if fields.data.get("rope_scaling") != family.defaults.get("rope_scaling"):
        _refuse_both(fields, parameters)
    nested = any(isinstance(value, dict) for value in parameters.data.values())
    if not nested and family.architecture.startswith("Olmo3"):
        # As early versions of transformers 5 saved it. The model was trained with this rope where
        # attention is whole, and with a plain one in the windows.
        wide = _rope(fields, parameters, family, theta, head_dim)
        return wide, Rope(wide.theta)
    if nested != family.two_ropes:
        raise fields.refuse(
            "rope_parameters",
            "has one entry per layer type"
            if nested
            else "lacks full_attention and sliding_attention entries",
        )
    if not nested:
        return _rope(fields, parameters, family, theta, head_dim), None
    return (
        _rope(fields, _section(parameters, FULL), family, theta, head_dim),
        _rope(fields, _section(parameters, SLIDING), family, local_theta, head_dim),
    )


def _refuse_both(fields: Fields, parameters: Fields) -> None:
    """Refuses two descriptions of one rope, unless they agree."""
    older = dict(_section(fields, "rope_scaling").data)
    if "type" in older:
        older.setdefault("rope_type", older.pop("type"))
    if any(parameters.data.get(key) != value for key, value in older.items()):
        raise fields.refuse(
            "rope_scaling", "says something else than rope_parameters; write what holds there"
        )


def _section(fields: Fields, key: str) -> Fields:
    """A section that may be left out, which means an unscaled rope."""
    return fields.section(key) if fields.has(key) else Fields(fields.path, {}, f"{key}.")


def _rope(
    fields: Fields, section: Fields, family: Family, default_theta: float, head_dim: int
) -> Rope:
    # Older files write `type`, and Phi's first ones `su` and `yarn` for what became `longrope`.
    key = "rope_type" if section.has("rope_type") else "type"
    kind = section.data.get(key) or "default"
    if "longrope" in family.scaled_ropes and kind in ("su", "yarn"):
        kind = "longrope"
    theta = section.number("rope_theta", default_theta)
    share = _rotary_share(fields, section, family, head_dim)
    if kind == "default":
        return Rope(theta, rotary_share=share)
    if kind not in family.scaled_ropes:
        supported = ", ".join(("default", *family.scaled_ropes))
        raise section.refuse(key, f"= {show(kind)} is not supported. Supported: {supported}")
    if kind == "linear":
        return Rope(theta, "linear", section.number("factor"), rotary_share=share)
    context = fields.integer("max_position_embeddings", largest=1 << 30)
    if kind == "dynamic":
        factor = section.number("factor")
        return Rope(theta, kind, factor, original_context=context, rotary_share=share)
    # Phi has it beside the section, where it counts before one within.
    holder = fields if fields.has("original_max_position_embeddings") else section
    # Only Llama 3.1 has no default: its ramp would mean something else.
    default = None if kind == "llama3" else context
    original = holder.integer("original_max_position_embeddings", default, largest=1 << 30)
    if kind == "longrope":
        return _longrope(section, theta, original, context / original, share, head_dim)
    factor = section.number("factor")
    if kind == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if not low < high:
            raise section.refuse("high_freq_factor", f"= {high}: expected above {low}")
        return Rope(
            theta,
            kind,
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_context=original,
            rotary_share=share,
        )
    if theta <= 1:
        raise section.refuse("rope_theta", f"= {theta}: expected above 1")
    fast, slow = section.number("beta_fast", 32.0), section.number("beta_slow", 1.0)
    if not slow < fast:
        raise section.refuse("beta_fast", f"= {fast}: expected above beta_slow, {slow}")
    return Rope(
        theta,
        kind,
        factor=factor,
        original_context=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=section.flag("truncate", True),
        magnitude=_yarn_magnitude(section, factor),
        rotary_share=share,
    )


def _rotary_share(fields: Fields, section: Fields, family: Family, head_dim: int) -> float:
    holder = section if section.has("partial_rotary_factor") else fields
    share = holder.number("partial_rotary_factor", 1.0)
    width = int(head_dim * share)
    if share != 1 and not family.partial_rotary:
        raise holder.refuse(
            "partial_rotary_factor",
            f"= {share} is not supported, since {family.architecture} turns whole heads",
        )
    if share > 1 or width < 4 or width % 2:
        raise holder.refuse(
            "partial_rotary_factor",
            f"= {share}: expected at most 1, and 4 or more, evenly, of {head_dim} channels",
        )
    return share


def _yarn_magnitude(section: Fields, factor: float) -> float:
    """YaRN's attention factor (arXiv 2309.00071, section 3.4), as transformers reads it."""
    if section.has("attention_factor"):
        return section.number("attention_factor")

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    # Null and 0 both mean that they are not set.
    if section.data.get("mscale") and section.data.get("mscale_all_dim"):
        return of(section.number("mscale")) / of(section.number("mscale_all_dim"))
    return of(1.0)


def _longrope(
    section: Fields, theta: float, original: int, factor: float, share: float, head_dim: int
) -> Rope:
    pairs = int(head_dim * share) // 2

    def factors(key: str) -> tuple[float, ...]:
        value = section.data.get(key)
        numbers = value if isinstance(value, list) else []
        if len(numbers) != pairs or not all(
            isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e30 for x in numbers
        ):
            raise section.refuse(key, f"= {show(value)}: expected {pairs} positive numbers")
        return tuple(map(float, numbers))

    factor = section.number("factor", factor)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    return Rope(
        theta,
        "longrope",
        original_context=original,
        short_factors=factors("short_factor"),
        long_factors=factors("long_factor"),
        magnitude=section.number("attention_factor", grown),
        rotary_share=share,
    )
