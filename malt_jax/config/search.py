"""The tree search and value iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check, check_range, show, whole_number


@dataclass(frozen=True)
class SearchConfig:
    """Expansion of the trees and backup of rewards to values (docs/method.md, section 3)."""

    backup: Literal["mean", "max", "soft"] = "mean"
    """How the value of a node follows from its children's; the paper takes the mean."""
    softness: float = 0.25
    """Temperature of the soft maximum of `backup: soft`: near 0 the maximum, large the mean."""
    threshold: float = 0.5
    """A node is positive if its value is above this, strictly; ties are negative."""
    spare: int = 0
    """Adaptive branching: so many of each role's `branch` siblings are held back and given to the
    prefixes of a block whose outcomes differ most, at the same number of calls. 0: off, as
    published."""
    block: int = 256
    """Questions that are expanded and saved together; an interrupted block is repeated."""
    streaming: bool = False
    """Begin each completion as soon as its prompt is complete and rows are free, whatever its level
    and block, instead of level by level and block by block. The same tokens are drawn, except where
    another order of rounding decides."""
    shard: str = "1/1"
    """`i/k`: search only the i-th of k equal slices of the training questions."""

    def __post_init__(self):
        check_range(self, "softness", above=0)
        check_range(self, "threshold", least=0, below=1)
        check_range(self, "spare", least=0, zero="off", most=62)
        check_range(self, "block", least=1)
        check(
            not (self.spare and self.streaming),
            f"spare: found {self.spare}, but streaming: true, and what is held back can only be "
            "given out once a block's first leaves are graded; leave out one of them.",
        )
        index, count = map(whole_number, self.shard.partition("/")[::2])
        check(
            index is not None and count is not None and 1 <= index <= count,
            f"shard: found {show(self.shard)}, allowed: i/k with 1 <= i <= k, for example 3/16.",
        )
