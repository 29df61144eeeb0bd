"""Closeness relative to the scale of what is compared, with room for other processors' rounding."""

from __future__ import annotations

import numpy as np

FLOAT32 = 1e-5
"""For float32 results of sums in another order: 85 units in the last place of the largest value.
Differences of 2e-6 have been seen; the order of sums differs from processor to processor."""


def assert_near(found, expected, share: float = FLOAT32) -> None:
    """No difference is larger than `share` of the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.isfinite(found).all() and np.isfinite(expected).all()
    worst, scale = np.abs(found - expected).max(), np.abs(expected).max()
    assert worst <= share * scale, f"{worst:.3g} of {scale:.3g}: {worst / scale:.3g}, not {share}"
