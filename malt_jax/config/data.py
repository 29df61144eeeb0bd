"""How the values of a tree become training examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check_range


@dataclass(frozen=True)
class DataConfig:
    """From node values to what each role learns from; the defaults are MALT as published."""

    positives: Literal["value", "advantage", "both"] = "value"
    """Which nodes are positive. `value`: above the threshold; `advantage`: better than their
    siblings; or both."""
    sft: Literal["positives", "pairs"] = "positives"
    """SFT on all positive nodes, or only on those that are chosen in a pair."""
    weights: Literal["none", "advantage", "confidence"] = "none"
    """Weight of an SFT or KTO example. `advantage`: how much it differs from its siblings;
    `confidence`: how sure its label is. Weights have a mean of 1 for each role, and an example of
    weight 0 is left out."""
    pairs: Literal["random", "best_worst", "all"] = "random"
    """Which positive x negative siblings. `random`: drawn by seed; `best_worst`: the widest gap in
    value; or every one."""
    pairs_per_prefix: int = 1
    """At most this many pairs under one prefix (not for `all`)."""
    min_gap: float = 0.0
    """Leave out pairs whose values differ by less than this."""
    margins: Literal["none", "gap"] = "none"
    """The margin of a pair: none, or its gap in value, for a DPO with an offset
    (`train.dpo.offset`)."""
    advantage: Literal["sibling", "normalised", "global"] = "sibling"
    """Advantage of the policy gradient: over the siblings, that by their standard deviation, or
    over all other leaves of the tree."""
    influence: bool = False
    """Measure on the trees of the search, by scoring passes, how much each turn listens to the one
    before it, and in later rounds how far each role has moved from the base. On held-out trees,
    which are few, both are always measured."""

    def __post_init__(self):
        check_range(self, "pairs_per_prefix", least=1)
        check_range(self, "min_gap", least=0, most=1)
