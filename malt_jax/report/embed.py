"""Data for the page: JSON that cannot end its script, in files that load from a disk.

A page opened from a disk may not fetch its neighbours, but it may run scripts beside it. So what
does not fit the page is written as scripts that call `maltPage(name, data)`, loaded when needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE_BYTES = 400_000
"""A page of data is closed once it is this long: quick to load, and few files."""
INLINE_BYTES = 3_000_000
"""Data up to this size goes into report.html itself."""


def script_json(data: Any) -> str:
    """JSON that is safe inside `<script>`: plain ASCII, without `<`, `>` and `&`.

    So it holds no `</script>`, `<!--` or U+2028, and lone surrogates travel as escapes. Raises
    ValueError for NaN and infinity.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


class Pages:
    """Writes named pages of records into a folder, each record told which page it is on."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._size = 0
        self._records: list[str] = []
        self._name = ""
        self._counts: dict[str, int] = {}
        self.bytes = 0

    def add(self, group: str, record: Any) -> tuple[str, int]:
        """Adds a record of a group (groups share no page); returns its page and its place there."""
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
        """Writes the page that is open, if any."""
        if self._records:
            text = f'maltPage("{self._name}",[{",".join(self._records)}]);\n'
            (self._folder / f"{self._name}.js").write_text(text, encoding="ascii")
            self.bytes += len(text)
        self._records, self._size = [], 0


def scripts(folder: Path) -> Iterator[str]:
    """The text of every page, to be put into the report itself."""
    for path in sorted(folder.glob("*.js")):
        yield path.read_text(encoding="ascii")
