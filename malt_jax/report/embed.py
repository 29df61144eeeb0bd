"""Data for the page: JSON that cannot end its script, in files that a page from a disk can load.

A page opened from a disk may not fetch the files beside it, but it may run scripts beside it. Data
that does not fit the page is therefore written as scripts that call `maltPage(name, records)`, and
loaded when it is needed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.storage import atomic

if TYPE_CHECKING:
    from malt_jax.report.prompts import Templates
    from malt_jax.report.trees import Group

PAGE_BYTES = 400_000
"""A page of data is closed when it is this long: quick to load, and few files."""
INLINE_BYTES = 3_000_000
"""Data up to this size is part of report.html itself."""
_CALL = "maltPage("
"""How every page of data begins."""
REPORT_DATA = "report_data/"
"""Where `report.html` finds its data."""


def script_json(data: Any) -> str:
    """JSON that is safe inside `<script>`: plain ASCII, without `<`, `>` and `&`.

    It can hold no `</script>`, `<!--` or U+2028, and lone surrogates become escapes. Raises
    ValueError for NaN and infinity.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def beside(page: Path) -> Path:
    """The folder of a page's data, whose name follows from that of the page."""
    return page.with_name(f"{page.stem}_data")


def is_page_data(folder: Path) -> bool:
    """Whether a folder holds nothing but pages of data, so that it may be replaced."""
    return not folder.is_symlink() and folder.is_dir() and all(map(_is_page, folder.iterdir()))


def _is_page(path: Path) -> bool:
    if path.suffix != ".js" or path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_CALL)) == _CALL.encode()


class Pages:
    """Writes records to numbered pages of data in a folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._size = 0
        self._records: list[str] = []
        self._name = ""
        self._counts: dict[str, int] = {}
        self.bytes = 0
        """Length of all pages written so far."""

    def add(self, group: str, record: Any) -> tuple[str, int]:
        """Adds a record of a group (groups share no page); returns its page and its index there."""
        if self._records and (self._size > PAGE_BYTES or not self._name.startswith(f"{group}-")):
            self.close()
        if not self._records:
            number = self._counts.get(group, 0)
            self._counts[group] = number + 1
            self._name = f"{group}-{number:04d}"
        text = script_json(record)
        self._records.append(text)
        self._size += len(text)
        return self._name, len(self._records) - 1

    def close(self) -> None:
        """Writes the open page, if there is one."""
        if self._records:
            text = f"{_CALL}{script_json(self._name)},[{','.join(self._records)}]);\n"
            (self._folder / f"{self._name}.js").write_text(text, encoding="ascii")
            self.bytes += len(text)
        self._records, self._size = [], 0


def scripts(folder: Path) -> Iterator[str]:
    """The text of every page, to be part of the report itself."""
    for path in sorted(folder.glob("*.js")):
        yield path.read_text(encoding="ascii")


def explorer_data(
    folder: Path,
    pages: Pages,
    groups: Sequence[Group],
    templates: Templates,
    systems: Sequence[str],
    labels: Mapping[str, str],
    entries: Sequence[Mapping[str, Any]],
    address: str,
    pairing: Mapping[str, Any],
) -> tuple[str, list[str]]:
    """What the explorer reads as JSON, and the pages of data as scripts, if they fit the page.

    Otherwise there are no scripts, and the page loads them from `address`, relative to its own.
    `pairing`: a name, and the systems that are first shown side by side, `before` and `after`: the
    first ones of each that there are.
    """
    inline = pages.bytes <= INLINE_BYTES
    data = {
        "last": next((group.totals.roles[-1] for group in groups), "last turn"),
        "folder": None if inline else address,
        "groups": [
            {
                "key": group.key,
                "name": group.name,
                "trained": group.trained,
                "threshold": group.totals.contrast.threshold,
                "questions": group.questions,
            }
            for group in groups
        ],
        "prompts": templates.texts,
        "systems": systems,
        "labels": labels,
        "evaluation": entries,
        "pairing": pairing,
    }
    return script_json(data), list(scripts(folder)) if inline else []


def write_page(path: Path, text: str, pages: Path | None) -> None:
    """Writes a page, and before it the folder of its data, which it must never name in vain."""
    folder = beside(path)
    if pages:
        with atomic.atomic_directory(folder, replace=True) as built:
            for script in pages.glob("*.js"):
                shutil.copyfile(script, built / script.name)
    atomic.write_text(path, text)
    if not pages and folder.exists():
        # An earlier page had more data, and this one does not name the folder any more.
        shutil.rmtree(folder)
