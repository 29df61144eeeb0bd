"""How the values of a tree become training examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check_range


@dataclass(frozen=True)
class DataConfig:
    """From node values to the SFT examples and DPO pairs of each role."""

    sft: Literal["positives", "pairs"] = "positives"
    """SFT on all positive nodes, or only on those that are chosen in a pair."""
    pairs: Literal["random", "best_worst", "all"] = "random"
    """Which positive x negative siblings: drawn by seed, the widest gap in value, or every one."""
    pairs_per_prefix: int = 1
    """At most this many pairs under one prefix (not for `all`)."""

    def __post_init__(self):
        check_range(self, "pairs_per_prefix", least=1)
