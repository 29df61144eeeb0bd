"""The graders' regular expressions and word lists, from the TOML files in the folder `patterns`.

An expression may go over several lines, which are joined. `@name@` in it stands for another entry
of its file, and for the entries of a list or the keys of a table as alternatives; `@span@` is one
more than `MAX_SPAN`.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

MAX_SPAN = 400
"""Characters of an answer; anything longer is no final answer."""


class Patterns:
    """The entries of one file; as attributes they are compiled expressions."""

    def __init__(self, name: str, **more: Any):
        """`more`: further entries that the file's expressions may name."""
        path = Path(__file__).with_name("patterns") / f"{name}.toml"
        more["span"] = str(MAX_SPAN + 1)
        self.table = _joined(tomllib.loads(path.read_text(encoding="utf-8"))) | more

    def __getattr__(self, name: str) -> re.Pattern[str]:
        if name == "table" or name not in self.table:
            raise AttributeError(name)
        # Stored, so that the next access does not come here.
        self.__dict__[name] = re.compile(self.source(name))
        return self.__dict__[name]

    def source(self, name: str) -> str:
        """The text of an expression, in the Unicode form of folded texts (see `languages.fold`)."""
        entry = self.table[name]
        return self._expanded(entry if isinstance(entry, str) else "|".join(entry))

    def rules(self, name: str) -> list[tuple[re.Pattern[str], str]]:
        """A list of (expression, replacement), to be applied in order."""
        return [(re.compile(self._expanded(old)), new) for old, new in self.table[name]]

    def _expanded(self, text: str) -> str:
        text = re.sub(r"@(\w+)@", lambda found: self.source(found[1]), text)
        return unicodedata.normalize("NFC", text)


def _joined(entry: Any) -> Any:
    """The entry with the lines of each text joined."""
    if isinstance(entry, dict):
        return {name: _joined(value) for name, value in entry.items()}
    if isinstance(entry, list):
        return list(map(_joined, entry))
    return "".join(entry.splitlines()) if isinstance(entry, str) else entry
