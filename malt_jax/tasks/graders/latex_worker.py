"""The process that compares LaTeX answers; `latex` starts, feeds and replaces it.

One JSON line in, `[gold, answer, seconds]`; one out, `true` or `false`. A comparison that does not
end (`10^{10^{10}}` is evaluated in C, where no exception gets through) is ended by the kernel: the
timer's default action kills this process. The same holds if the parent is gone. The limit is
processor time, so that a busy machine grades as an idle one does; waiting may take ten times that.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys

MEMORY_BYTES = 4 << 30


def equal(gold: str, answer: str) -> bool:
    """Whether math-verify finds the two expressions equal. Twelve decimals, not its usual six."""
    from math_verify import parse, verify

    parsed = [parse(f"${latex}$", parsing_timeout=None) for latex in (gold, answer)]
    return all(parsed) and bool(
        verify(*parsed, float_rounding=12, numeric_precision=30, timeout_seconds=None)
    )


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes to the parent
    logging.disable(logging.CRITICAL)
    equal("1", "1")  # imports
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
        try:
            verdict = equal(gold, answer)
        except Exception:  # whatever an expression can provoke, it is not equal
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), file=out, flush=True)


if __name__ == "__main__":
    main()
