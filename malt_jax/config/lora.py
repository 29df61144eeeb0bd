"""Config of LoRA adapters. Apart from the code that builds them: reading a config needs no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malt_jax.checks import check, check_range

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""Every projection of a dense layer, by its name in the decoder."""
EXPERT_TARGETS = ("expert_gate", "expert_up", "expert_down")
"""Those of a mixture of experts, in place of gate, up and down."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv 2106.09685), one per role over the frozen base."""

    rank: int = 16
    """Rank of the update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank, or by alpha / sqrt(rank) with `rslora`."""
    targets: tuple[str, ...] = TARGETS
    """Projections with an adapter, of q, k, v, o, gate, up, down, expert_gate, expert_up,
    expert_down. Those that the model lacks are passed over; experts have none by default."""
    dropout: float = 0.0
    """Share of an adapter's inputs zeroed in SFT; none is in the other phases."""
    rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732), which keeps the update's size as rank grows."""
    zero_side: Literal["a", "b"] = "b"
    """The factor that starts at zero, so that training starts exactly from the base model."""

    def __post_init__(self):
        check_range(self, "rank", least=1, most=4096)
        check_range(self, "alpha", above=0)
        check_range(self, "dropout", least=0, below=1)
        allowed = (*TARGETS, *EXPERT_TARGETS)
        unknown = [target for target in self.targets if target not in allowed]
        check(
            not unknown and len(self.targets) >= 1,
            f"targets: found {', '.join(unknown) or 'none'}, allowed: {', '.join(allowed)}.",
        )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
