"""The tree search and value iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check, show, whole_number


@dataclass(frozen=True)
class SearchConfig:
    """Expanding the tree and backing values up it (method, section 3)."""

    backup: Literal["mean", "max", "soft"] = "mean"
    """A node's value from its children's; the published one is mean."""
    softness: float = 0.25
    """Temperature of the soft maximum of `backup: soft`: 0 is max, large is mean."""
    threshold: float = 0.5
    """A node is positive if its value is above this, strictly; ties are negative."""
    block: int = 256
    """Questions expanded together and committed together; what a kill can cost."""
    shard: str = "1/1"
    """`i/k`: this process searches only the i-th of k equal ranges of the task."""

    def __post_init__(self):
        check(self.softness > 0, f"softness: found {self.softness}, allowed: above 0.")
        check(0 <= self.threshold < 1, f"threshold: found {self.threshold}, allowed: 0 to below 1.")
        check(self.block >= 1, f"block: found {self.block}, allowed: 1 or more.")
        index, count = map(whole_number, self.shard.partition("/")[::2])
        check(
            index is not None and count is not None and 1 <= index <= count,
            f"shard: found {show(self.shard)}, allowed: i/k with 1 <= i <= k, as 3/16.",
        )
