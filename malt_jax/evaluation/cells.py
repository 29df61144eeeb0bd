"""How numbers are written in tables."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float) -> str:
    """A share in percent: `81.2`."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign: `+9.8`, `−1.0`."""
    # Adding zero removes the sign of what rounds to minus zero.
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "−")


def interval(bounds: Sequence[float]) -> str:
    """An interval of a share in percent: `78.1 to 84.0`."""
    return " to ".join(map(percent, bounds))


def points_interval(bounds: Sequence[float]) -> str:
    """An interval of a difference in percentage points: `−1.2 to +4.0`."""
    return " to ".join(map(points, bounds))


def probability(p: float) -> str:
    """A p-value with two digits: `0.034`, `2.1e-07`; `<1e-15` below the precision of the tests."""
    if p < 1e-15:
        return "<1e-15"
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def seconds(duration: float) -> str:
    """Two decimals, and below one second two significant digits: `12.34`, `0.0061`."""
    return f"{duration:.2f}" if duration >= 1 else f"{duration:.2g}"
