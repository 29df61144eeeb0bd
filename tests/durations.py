"""With `--durations`, also lists the files whose tests take longest: one worker runs a file."""

from __future__ import annotations

from collections import Counter

import pytest

MOST = 25


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.config.option.durations is None:
        return
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section(f"slowest {MOST} files, of {sum(seconds.values()):.0f} s in all")
    for name, spent in seconds.most_common(MOST):
        terminalreporter.write_line(f"{spent:.2f}s {name}")
