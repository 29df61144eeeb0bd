"""The interface between the decoder and attention: what a layer hands over and gets back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

# Large but finite: a row whose every key is masked must give numbers (ignored later), not NaN.
MASKED = -1e30


class LayerAttention(NamedTuple):
    """What is particular to one layer's attention."""

    window: Int[Array, ""] | int | None
    """Keys further back than this many positions are invisible; None: all are visible."""
    softcap: float | None
    """Scores s become softcap * tanh(s / softcap); None: they stay as they are."""
    sinks: Float[Array, "H"] | None = None
    """One more score per head, which takes its share of the softmax and has no value (gpt-oss)."""


Attend = Callable[[Array, Array, Array, Any, LayerAttention], tuple[Array, Any]]
"""(q [B T H h], k [B T K h], v [B T K h], cache, layer) -> (out [B T H h], cache).

The decoder does not know where keys and values live: a training mask, prefill, and decoding against
a shared prefix are three such functions over the same weights. Queries arrive scaled and, like
keys, rotated. `cache` is the layer's own, of whatever kind the function keeps, or None.
"""
