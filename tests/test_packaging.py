"""What pip installs: every file the package needs, and every package it imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "malt_jax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES = {"yaml": "pyyaml", "orbax": "orbax-checkpoint"}
"""Modules whose package has another name."""
WITH = {"ml_dtypes": "jax", "jaxlib": "jax", "libtpu": "jax"}
"""Modules that another dependency brings and cannot do without."""


def required(lines: list[str]) -> set[str]:
    """Package names of requirement lines."""
    return {re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-") for line in lines}


def imported() -> dict[str, str]:
    """Third-party module by the file that imports it, jailed workers' neighbours left out."""
    own = {path.stem for path in PACKAGE.rglob("*.py")} | {"malt_jax"}
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in own:
                    found[top] = str(path.relative_to(ROOT))
    return found


def test_every_file_of_the_package_is_in_the_wheel():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["malt_jax"]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.is_file()}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".py"}
    files = {path for path in files if "__pycache__" not in path.parts}
    assert files - shipped == set()


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_every_import_is_declared():
    declared = required(PROJECT["project"]["dependencies"])
    for lines in PROJECT["project"]["optional-dependencies"].values():
        declared |= required(lines)
    # What pip cannot install beside our versions, for the reason that docs/benchmarks-sampler.md
    # gives with the commands that can.
    installed_apart = {"tunix", "qwix"}
    for module, path in imported().items():
        if module in installed_apart:
            continue
        package = NAMES.get(module, WITH.get(module, module)).lower().replace("_", "-")
        assert package in declared, f"{path} imports {module}"


def test_the_lock_covers_what_is_declared():
    pins = required(
        [li for li in (ROOT / "constraints.txt").read_text().splitlines() if "==" in li]
    )
    extras = PROJECT["project"]["optional-dependencies"]
    declared = required([*PROJECT["project"]["dependencies"], *extras["test"], *extras["eval"]])
    assert declared <= pins


SCRIPTS = ("scripts/quickstart.sh", "scripts/test.sh", "scripts/qwen25_gsm8k.sh", ".ci/run")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_can_be_run(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111 and path.read_text().startswith("#!")
