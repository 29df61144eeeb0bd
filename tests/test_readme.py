"""The README says what the kept results say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "readme_table.py"
KEPT = ROOT / "docs" / "results" / "quickstart.json"

pytestmark = pytest.mark.skipif(not KEPT.exists(), reason="no kept results in this tree")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("readme_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_kept_results():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_number_typed_in_by_hand_is_replaced(script):
    readme = (ROOT / "README.md").read_text()
    [last] = (row for row in json.loads(KEPT.read_text())["systems"] if row["name"] == "malt@3")
    typed = readme.replace(f"**{100 * last['accuracy']:.1f}**", "**99.9**")
    assert typed != readme
    assert script.written(typed) == readme


def test_the_table_of_one_seed_corrects_the_fixed_comparisons_alone(script):
    results = json.loads(KEPT.read_text())
    results["seeds"] = [4]
    p = {"sa@9": 0.004, "star-sa@9": 0.01, "star-ma@3": 0.2, "ma@3": 0.03}
    for row in results["systems"]:
        if test := row["tests"].get("malt@3"):
            test |= {"p": p.get(row["name"], 0.5), "delta": -0.125, "delta_interval": [-0.25, 0.02]}
    shown = {
        cells[0]: cells
        for line in script.table(results).splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) > 1
    }
    # 3 * 0.004, 2 * 0.01, 1 * 0.2: Holm's steps over three tests.
    assert shown["single agent, vote of 9"][-3:] == ["+12.5 (−2.0 to +25.0)", "0.004", "0.012"]
    assert shown["STaR single agent, vote of 9"][-2:] == ["0.010", "0.020"]
    assert shown["STaR pipeline (SFT only), vote of 3"][-2:] == ["0.200", "0.200"]
    assert shown["pipeline, untrained, vote of 3"][-2:] == ["0.030", ""]
    assert shown["MALT, vote of 3"][-3:] == ["", "", ""]
    assert shown["MALT, vote of 3"][3].startswith("**")
    assert "seed 4" in script.table(results)


def test_results_against_another_row_are_not_kept(script):
    results = json.loads(KEPT.read_text())
    with pytest.raises(SystemExit, match="malt@3"):
        script.kept({**results, "baseline": "sa@9"})
