"""Hooks of `mkdocs build`: pages that exist on the site only, and links that leave the docs.

pip install -e '.[docs]' && mkdocs build --strict
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

MODULES = (
    "algorithm",
    "tree.node",
    "tree.values",
    "tree.outside",
    "credit.signals",
    "credit.rules",
    "data.examples",
    "training.losses",
    "evaluation.statistics",
    "tasks.base",
    "tasks.custom",
    "pipeline",
)
"""Modules whose docstrings are a page: the method, and what users call."""


def on_files(files: Any, config: Any) -> Any:
    """Adds `modules.md`, whose content mkdocstrings takes from the docstrings."""
    sections = [f"## `malt_jax.{name}`\n\n::: malt_jax.{name}" for name in MODULES]
    text = "\n\n".join(["# Modules", *sections]) + "\n"
    files.append(File.generated(config, "modules.md", content=text))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Formulas become MathML, which browsers draw without a script."""

    def formula(match: re.Match[str]) -> str:
        latex = html.unescape(match[2])[2:-2]  # without the brackets of `\(...\)` and `\[...\]`
        return convert(latex, display="block" if match[1] == "div" else "inline")

    return re.sub(r'(?s)<(span|div) class="arithmatex">(.*?)</\1>', formula, content)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files outside of docs/ become their names; the site does not hold these files."""

    def name(link: re.Match[str]) -> str:
        return link[1] if link[2] in link[1] else f"{link[1]} (`{link[2]}`)"

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", name, markdown)
