"""Data cards: README.md of one role's training data, which `load_dataset` reads."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from malt_jax import escape


def data_card(role: str, task: str, base: str, counts: Mapping[str, int]) -> str:
    """The card of a role's files of examples; `counts`: examples by the name of their file."""
    kinds = [kind for kind, count in counts.items() if count]
    further = {
        "kto": "unpaired completions that are desirable or undesirable (KTO)",
        "policy": "sampled completions with their advantages (policy gradient)",
    }
    others = [f", {counts[kind]} {what}" for kind, what in further.items() if counts.get(kind)]
    header = {
        "configs": [{"config_name": kind, "data_files": f"{kind}.jsonl"} for kind in kinds],
        "tags": ["malt", "malt-jax"],
    }
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# Training data of the {escape.markdown(role)}

Sampled from `{base}` on `{task}` by [MALT](https://arxiv.org/abs/2412.01928): \
{counts.get("sft", 0)} SFT examples (positive nodes) and {counts.get("dpo", 0)} preference pairs \
(siblings under one prefix){"".join(others)}. The columns are TRL's, beside provenance: \
`question_id`, `node_id`, `value`, and the exact token ids that were trained on. The text was \
written by a model.
"""
