"""Prompt templates of each role, shared by all tasks (`templates.toml`).

The role's instructions come first, then question, answer and critique, so that the prompts of one
role, and those of siblings under one question, share their first tokens. A small model that is
asked for a solution of its own answers instead of checking, so the verifier is asked not to write
one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path


def role_templates(answer_format: str) -> dict[str, str]:
    """Templates by role for a task whose answers are written as `answer_format` says.

    `judge` is for a pipeline that ends with its verifier, `retry` for one that refines without a
    critique and for self-correction, `debate` for several agents that read each other.
    """
    text = Path(__file__).with_name("templates.toml").read_text(encoding="utf-8")
    return {role: t.replace("<format>", answer_format) for role, t in tomllib.loads(text).items()}
