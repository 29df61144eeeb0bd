"""Names of the stages in a run's manifest."""

from __future__ import annotations

from malt_jax.tree.policies import STAR

EVAL, EXPORT, REPORT = "eval", "export", "report"


def search_stage(round: int) -> str:
    return f"search/{round:03d}"


def label_stage(round: int) -> str:
    return f"label/{round:03d}"


def train_stage(round: int, policy: str, phase: str) -> str:
    return f"train/{round:03d}/{policy}/{phase}"


def trained_stage(round: int) -> str:
    """The last training stage of a round: once it is done, so are the others."""
    return train_stage(round, STAR, "sft")
