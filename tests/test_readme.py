"""The README says what the kept results say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(
    not (ROOT / "docs/results/quickstart.json").exists(), reason="no kept results in this tree"
)
def test_the_table_is_that_of_the_kept_results():
    script = ROOT / "scripts" / "readme_table.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
