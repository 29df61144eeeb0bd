"""How values become training examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check


@dataclass(frozen=True)
class DataConfig:
    """From values to each role's SFT examples and DPO pairs."""

    sft: Literal["positives", "pairs"] = "positives"
    """SFT on all positive nodes, or only on those that are chosen in a pair."""
    pairs: Literal["random", "best_worst", "all"] = "random"
    """Which positive x negative siblings: drawn by seed, the widest gap in value, or every one."""
    pairs_per_prefix: int = 1
    """At most this many pairs under one prefix (not for `all`)."""

    def __post_init__(self):
        check(
            self.pairs_per_prefix >= 1,
            f"pairs_per_prefix: found {self.pairs_per_prefix}, allowed: 1 or more.",
        )
