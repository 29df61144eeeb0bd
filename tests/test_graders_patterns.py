"""The graders' tables: every expression compiles, is used, and means the same in every form."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from malt_jax.tasks import graders
from malt_jax.tasks.graders.patterns import Patterns

FOLDER = Path(graders.__file__).parent
FILES = sorted(path.stem for path in (FOLDER / "patterns").glob("*.toml"))
CODE = "".join(path.read_text() for path in FOLDER.glob("*.py"))
OUTSIDE = {"attached": "x", "scale": "x", "foreign": "x", "facts": "x"}
"""Entries that the modules add to their files."""


@pytest.mark.parametrize("name", FILES)
def test_every_entry_compiles_and_is_used(name):
    patterns = Patterns(name, **OUTSIDE)
    texts = [value for value in patterns.table.values() if isinstance(value, str)]
    named = set(re.findall(r"@(\w+)@", "".join(texts))) | set(re.findall(r'[.\["](\w+)\b', CODE))
    for entry, value in patterns.table.items():
        if (entry in OUTSIDE and entry != "facts") or entry == "span":
            continue
        assert entry in named or f"@{entry}@" in str(patterns.table), f"{name}: {entry} is unused"
        if isinstance(value, str):
            assert isinstance(getattr(patterns, entry), re.Pattern)


def test_an_expression_joins_its_lines_and_names_other_entries():
    patterns = Patterns("numerals", **OUTSIDE)
    assert "\n" not in patterns.source("compute")
    assert "two|three" in patterns.source("spelled") and "@" not in patterns.source("spelled")
    assert patterns.spelled is patterns.spelled
    with pytest.raises(AttributeError):
        _ = patterns.nothing_of_this_name


def test_accents_match_however_they_were_typed():
    for name in FILES:
        for entry, value in Patterns(name, **OUTSIDE).table.items():
            if isinstance(value, str):
                source = Patterns(name, **OUTSIDE).source(entry)
                assert source == unicodedata.normalize("NFC", source)
