"""Lists the skipped tests at the end of a run; `--fail-on-skip` allows only those stated here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

ALLOWED = {
    "may not mount a file system": "needs the right to mount, which containers rarely have",
    "may not make a network namespace": "needs unprivileged user namespaces, or root",
    "inspect_ai is not installed": "the extra harness brings many packages, for one file",
    "the compiler for GPUs is not installed": "the extra plan-gpu is 400 MB, for one test",
    "no namespaces, no Landlock or no seccomp": "needs a kernel that can confine a process",
}
"""Parts of the reasons for which continuous integration may skip a test, and why each is allowed.

Everything else that the tests need comes from pip (the test extra) or from `.ci/run`.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "fail if a test is skipped for a reason that tests/skips.py does not allow"
    parser.addoption("--fail-on-skip", action="store_true", help=about)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Prints the list after everything else that pytest prints."""
    yield
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = terminal.stats.get("skipped", []) if terminal else []
    tests = defaultdict(list)
    for report in reports:
        if not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "unknown reason"
            tests[reason.removeprefix("Skipped: ")].append(report.nodeid)
    if not tests:
        return
    terminal.write_line(f"\nSkipped tests ({sum(map(len, tests.values()))}), by reason:")
    refused = session.config.getoption("--fail-on-skip")
    for reason, names in sorted(tests.items()):
        why = next((why for part, why in ALLOWED.items() if part in reason), None)
        note = f" (allowed: {why})" if why else " (NOT ALLOWED)" if refused else ""
        terminal.write_line(f"  {reason}{note}")
        for name in names:
            terminal.write_line(f"    {name}")
        if refused and not why:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
