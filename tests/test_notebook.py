"""The notebook's code, run cell by cell on a model of seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import cli_run

NOTEBOOK = json.loads((Path(__file__).parents[1] / "docs" / "quickstart.ipynb").read_text())
CODE = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]


def test_every_cell_runs_and_the_tree_is_that_of_the_run(tmp_path, capsys):
    run = shutil.copytree(cli_run.trained(), tmp_path / "run")
    _, config, *rest, _, _ = cli_run.flags()
    cells = {"CONFIG": config, "RUN": str(run), "FLAGS": rest, "TRUST": True}
    for cell in CODE[1:]:
        exec(cell, cells)
    said = capsys.readouterr().out
    tree = cells["tree"]
    assert f"{tree.question} -> {tree.answer}" in said and "MALT, vote of 3" in said
    assert sum(line.lstrip()[:1] in "+-" for line in said.splitlines()) >= len(tree.nodes)


@pytest.mark.parametrize("name", ["CONFIG", "RUN", "FLAGS", "TRUST"])
def test_the_first_cell_sets_what_the_others_read(name):
    cells: dict = {}
    exec(CODE[0], cells)
    assert name in cells and any(name in cell for cell in CODE[1:])


def test_no_output_is_kept_in_the_file():
    assert all(not c.get("outputs") for c in NOTEBOOK["cells"])
