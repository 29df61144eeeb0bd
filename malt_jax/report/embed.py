"""Data for the page: JSON that cannot end its script, in files that a page from a disk can load.

A page opened from a disk may not fetch the files beside it, but it may run scripts beside it. Data
that does not fit the page is therefore written as scripts that call `maltPage(name, records)`, and
loaded when it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE_BYTES = 400_000
"""A page of data is closed when it is this long: quick to load, and few files."""
INLINE_BYTES = 3_000_000
"""Data up to this size is part of report.html itself."""


def script_json(data: Any) -> str:
    """JSON that is safe inside `<script>`: plain ASCII, without `<`, `>` and `&`.

    It can hold no `</script>`, `<!--` or U+2028, and lone surrogates become escapes. Raises
    ValueError for NaN and infinity.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


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
            text = f'maltPage("{self._name}",[{",".join(self._records)}]);\n'
            (self._folder / f"{self._name}.js").write_text(text, encoding="ascii")
            self.bytes += len(text)
        self._records, self._size = [], 0


def scripts(folder: Path) -> Iterator[str]:
    """The text of every page, to be part of the report itself."""
    for path in sorted(folder.glob("*.js")):
        yield path.read_text(encoding="ascii")
