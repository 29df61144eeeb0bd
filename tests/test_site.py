"""The documentation as a site: every page, link and docstring reference holds."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed")
pytest.importorskip("material", reason="mkdocs-material is not installed")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly: any warning ends the build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def test_every_page_of_the_docs_is_on_the_site_and_in_its_navigation(site):
    front = (site / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        if page.stem != "index":
            assert (site / page.stem / "index.html").is_file()
            assert f'href="{page.stem}/"' in front, f"{page.name} is in no section of mkdocs.yml"


def test_formulas_are_drawn_by_the_browser_itself(site):
    for name in ("method", "credit"):
        text = (site / name / "index.html").read_text()
        assert text.count("<math") > 10 and "arithmatex" not in text
        shown = re.sub(r"(?s)<(code|pre|script|math)\b.*?</\1>", "", text)
        assert not re.search(r"\$[^$\n]{1,80}\\[a-z]", shown), "LaTeX is left as text"


def test_docstrings_are_pages_and_no_page_asks_another_host(site):
    text = (site / "modules" / "index.html").read_text()
    assert "malt_jax.algorithm.search" in text and "back_up" in text
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert loaded == []
