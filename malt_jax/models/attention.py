"""What the attention of training and of sampling have in common."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Int

# Large but finite: a row whose every key is masked must give numbers (ignored later), not NaN.
MASKED = -1e30


class LayerAttention(NamedTuple):
    """What is particular to one layer's attention."""

    window: Int[Array, ""] | int | None
    """Keys further back than this many positions are invisible; None: all are visible."""
    softcap: float | None
