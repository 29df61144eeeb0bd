"""generation_config.json: makes transformers sample a role's turns as our sampler does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from malt_jax.config.pipeline import RoleConfig

NAME = "generation_config.json"


def generation_config(
    base: Mapping[str, Any], role: RoleConfig, end_ids: Sequence[int]
) -> dict[str, Any]:
    """The token ids of the base model's file with the role's own sampling settings.

    Other settings of the base model, such as a repetition penalty, are left out: the role was not
    trained under them. `top_p` and `top_k` are written even when they are off, since transformers
    has defaults of its own. `end_ids`: every token that ends a turn, which may be more than the
    base model's file names.
    """
    ids = {name: value for name, value in base.items() if name.endswith("_token_id")}
    if end_ids:
        ids["eos_token_id"] = end_ids[0] if len(end_ids) == 1 else list(end_ids)
    settings: dict[str, Any] = {
        "do_sample": role.temperature > 0,
        "max_new_tokens": role.max_new_tokens,
    }
    if role.temperature > 0:
        settings |= {"temperature": role.temperature, "top_p": role.top_p, "top_k": role.top_k}
    if role.stop:
        settings["stop_strings"] = list(role.stop)
    return ids | settings
