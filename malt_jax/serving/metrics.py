"""Counters of the server, in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

Labels = tuple[tuple[str, str], ...]
BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the buckets of a request's seconds."""
HELP = {
    "malt_requests_total": ("counter", "Requests answered, by model and HTTP status."),
    "malt_request_seconds": ("histogram", "Seconds from a request's body to its last byte."),
    "malt_batches_total": ("counter", "Calls of the sampler, by role."),
    "malt_batch_draws_total": ("counter", "Draws in these calls; over the calls: the batch size."),
    "malt_batch_seconds_total": ("counter", "Seconds in these calls."),
    "malt_generated_tokens_total": ("counter", "Tokens generated."),
    "malt_prompt_tokens_total": ("counter", "Tokens of the prompts of all draws."),
    "malt_requests_in_flight": ("gauge", "Requests that are being answered."),
    "malt_draws_waiting": ("gauge", "Draws that wait for a turn."),
    "malt_up": ("gauge", "1 while requests are answered."),
}


class Metrics:
    """Counts from any thread. `gauges` are asked when the text is made."""

    def __init__(self) -> None:
        self.gauges: dict[str, Callable[[], float]] = {}
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Labels], float] = defaultdict(float)
        # All buckets from the beginning, because readers expect them together and rising.
        for bound in (*map("{:g}".format, BOUNDS), "+Inf"):
            self._add("malt_request_seconds_bucket", 0, le=bound)

    def request(self, model: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        with self._lock:
            self._add("malt_requests_total", 1, model=model, status=str(status))
            for bound in BOUNDS:
                if seconds <= bound:
                    self._add("malt_request_seconds_bucket", 1, le=f"{bound:g}")
            self._add("malt_request_seconds_bucket", 1, le="+Inf")
            self._add("malt_request_seconds_sum", seconds)
            self._add("malt_request_seconds_count", 1)

    def batch(
        self, role: str, *, draws: int, seconds: float, tokens: int, prompt_tokens: int
    ) -> None:
        """Counts a call of the sampler."""
        with self._lock:
            self._add("malt_batches_total", 1, role=role)
            self._add("malt_batch_draws_total", draws, role=role)
            self._add("malt_batch_seconds_total", seconds, role=role)
            self._add("malt_generated_tokens_total", tokens)
            self._add("malt_prompt_tokens_total", prompt_tokens)

    def _add(self, name: str, amount: float, **labels: str) -> None:
        self._counts[name, tuple(labels.items())] += amount

    def text(self) -> str:
        """All metrics, each with its type and help."""
        with self._lock:
            counts = dict(self._counts)
        counts |= {(name, ()): gauge() for name, gauge in self.gauges.items()}
        lines = []
        for name, (kind, text) in HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            own = (name, *(f"{name}_{part}" for part in ("bucket", "sum", "count")))
            lines += [
                f"{series}{_labels(labels)} {value:.15g}"
                for (series, labels), value in counts.items()
                if series in own
            ]
        return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    # Values are names of models and roles, bounds and numbers: none needs an escape.
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""
