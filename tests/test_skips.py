"""The test command ends with the list of skipped tests; CI fails unless each is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

def test_passes(): pass

@pytest.mark.parametrize("n", range(3))
def test_needs_a_browser(n): pytest.skip("no browser")

def test_needs_a_mount(): pytest.skip("may not mount a file system: permission denied")
"""


def run(folder: Path, suite: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_suite.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "skips", *flags, "test_suite.py"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_output_ends_with_every_skipped_test_and_its_reason(tmp_path):
    done = run(tmp_path, SUITE)
    assert done.returncode == 0, done.stdout
    listing = done.stdout.partition("Skipped tests (4), by reason:")[2]
    assert listing.count("no browser") == 1 and listing.count("test_needs_a_browser[") == 3
    assert listing.rstrip().endswith("test_suite.py::test_needs_a_browser[2]")


def test_a_skip_that_is_not_allowed_fails_the_strict_run(tmp_path):
    done = run(tmp_path, SUITE, "--fail-on-skip")
    assert done.returncode == 1, done.stdout
    assert "no browser (NOT ALLOWED)" in done.stdout
    assert "permission denied (allowed: " in done.stdout


@pytest.mark.parametrize("skipped", [True, False])
def test_allowed_skips_pass_the_strict_run(tmp_path, skipped):
    suite = SUITE.replace('pytest.skip("no browser")', "pass")
    suite = suite if skipped else suite.replace("pytest.skip(", "str(")
    done = run(tmp_path, suite, "--fail-on-skip")
    assert done.returncode == 0, done.stdout
    assert ("Skipped tests (1)" in done.stdout) == skipped


def test_a_module_that_cannot_be_imported_counts_as_skipped(tmp_path):
    suite = SUITE + '\npytest.importorskip("no_such_package")\n'
    done = run(tmp_path, suite, "--fail-on-skip")
    assert done.returncode != 0 and "no_such_package" in done.stdout
    assert "(NOT ALLOWED)" in done.stdout
