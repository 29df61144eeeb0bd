"""How transformers draws a role's turns as the sampler here did: its generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from malt_jax.config.pipeline import RoleConfig


def generation_config(
    base: Mapping[str, Any], role: RoleConfig, end_ids: Sequence[int]
) -> dict[str, Any]:
    """The base's token ids with the role's own settings, and no other of the base's.

    A base's penalties and filters had no part in what the role was trained on. `top_p` and `top_k`
    are written when they are off as well, since transformers has defaults of its own. `end_ids`:
    all that end a turn, which may be more than the base's file names.
    """
    ids = {name: value for name, value in base.items() if name.endswith("_token_id")}
    drawn = {"do_sample": role.temperature > 0, "max_new_tokens": role.max_new_tokens}
    if role.temperature > 0:
        drawn |= {"temperature": role.temperature, "top_p": role.top_p, "top_k": role.top_k}
    if role.stop:
        drawn["stop_strings"] = list(role.stop)
    ends = list(end_ids)
    return ids | ({"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}) | drawn
