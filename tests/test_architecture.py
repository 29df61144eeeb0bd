"""ARCHITECTURE.md tells the truth: what folders import, and that the files it names exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "malt_jax"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
GENERAL = {"checks", "errors", "escape", "hashing", "memory", "regular_files"}
TERMINAL = {"progress", "streams"}
METHOD = (
    "tasks",
    "models",
    "sampling",
    "tree",
    "credit",
    "data",
    "training",
    "evaluation",
    "algorithm",
)
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "assets" not in p.parts)


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The row of the table that a module belongs to."""
    part = name.split(".")[1] if "." in name else "checks"  # the package itself: its version
    if part in GENERAL:
        return "general"
    return "terminal" if part in TERMINAL else part


def imports(path: Path, top_level: bool = False) -> Iterator[str]:
    """Modules of the package that a file imports; not those that only annotations need."""
    tree = ast.parse(path.read_text())
    for guarded in [n for n in ast.walk(tree) if isinstance(n, ast.If)]:
        if "TYPE_CHECKING" in ast.dump(guarded.test):
            guarded.body = []
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "malt_jax")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "malt_jax":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                known = (ROOT / inner.replace(".", "/")).with_suffix(".py").exists()
                folder = (ROOT / inner.replace(".", "/")).is_dir()
                yield inner if known or folder else str(node.module)


def table() -> dict[str, set[str]]:
    rows = re.search("<!-- imports.*?-->(.*?)<!-- end", TEXT, re.DOTALL)[1].strip().splitlines()[2:]
    cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    return {c[0].strip("`"): set(c[-1].replace(" ", "").split(",")) for c in cells}


ALLOWED = table()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_imports_only_what_the_table_allows_its_folder(path):
    here = room(module(path))
    allowed = ALLOWED[here] | {here}
    if "everything" in allowed or path == PACKAGE / "__init__.py":
        return
    wrong = sorted(name for name in imports(path) if room(name) not in allowed)
    assert not wrong, f"{module(path)} imports {', '.join(wrong)}"


@pytest.mark.parametrize("folder", METHOD)
def test_the_method_imports_sections_of_the_config_and_never_the_whole(folder):
    for path in (p for p in FILES if room(module(p)) == folder):
        whole = {"malt_jax.config", "malt_jax.config.run"} & set(imports(path))
        assert not whole, f"{module(path)} imports {whole}"


def test_the_page_of_the_method_imports_no_config_and_no_persistence():
    found = {room(name) for name in imports(PACKAGE / "algorithm.py")}
    assert not found & {"config", "storage", "stages", "commands", "cli", "terminal"}


def test_every_folder_of_the_package_has_a_row_and_every_row_a_folder():
    rooms = {room(module(path)) for path in FILES}
    assert rooms == set(ALLOWED)


def test_no_modules_import_each_other_in_a_circle():
    graph = {module(p): {m for m in imports(p, top_level=True) if m != module(p)} for p in FILES}
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join([*trail[trail.index(name) :], name])
        if name in state or name not in graph:
            return
        state[name] = 1
        for other in graph[name]:
            visit(other, (*trail, name))
        state[name] = 2

    for name in graph:
        visit(name, ())


def test_every_file_that_the_page_names_exists():
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", TEXT))
    missing = [n for n in named if not (PACKAGE / n).exists() and not (ROOT / n).exists()]
    assert len(named) > 25 and not missing


def test_no_file_of_the_package_is_long():
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert max(lines.values()) <= 400, max(lines, key=lines.get)
