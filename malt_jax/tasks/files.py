"""Question files from outside: JSON lines, CSV and Parquet.

Each row keeps its place (file, line or row), so that an error found later can name it. Every
error is a `UserError` that says where it is, what was found, and how to repair it.

Text is UTF-8. A byte-order mark before a line is dropped (Windows editors write it), CRLF line
ends are accepted, blank lines are skipped, and a line holds at most 10 MB. NUL characters and lone
surrogates are refused, because no tokenizer can encode them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malt_jax.checks import has_lone_surrogate, no_constant, no_repeats, show
from malt_jax.errors import UserError
from malt_jax.escape import one_line

MAX_LINE_BYTES = 10_000_000
MAX_PARQUET_BYTES = 1_000_000_000
MAX_PARQUET_ROWS = 2_000_000
BOM = b"\xef\xbb\xbf"

# What a file is instead of a table, by its first bytes in lower case.
_NOT_A_TABLE = {
    b"version https://git-lfs": (
        "a Git LFS pointer, not the data",
        "fetch the file with git lfs pull",
    ),
    b"<!doctype": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
    b"<?xml": ("XML or a server's error", "download the file itself, or save it as JSON lines"),
    b"404: not found": ("a server's error", "download the file itself"),
    b"entry not found": ("a server's error", "download the file itself"),
    b"\x1f\x8b": ("compressed", "unpack it with gunzip"),
    b"bzh": ("compressed", "unpack it with bunzip2"),
    b"\xfd7zxz": ("compressed", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed", "unpack it with unzstd"),
    b"pk\x03\x04": ("a ZIP archive or a spreadsheet", "unpack it, or save it as CSV"),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet", "save it as CSV"),
    b"%pdf": ("a PDF document", "give the table itself"),
    b"arrow1": ("an Arrow file", "save it as Parquet"),
    b"par1": ("a Parquet file", "name it .parquet"),
}
_ONE_A_LINE = "write one JSON object per line"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Row:
    """One row of a file: its values, and its place for error messages."""

    file: str
    place: str  # "line 17" or "row 17", counted from 1
    values: dict[str, Any]

    def fail(self, found: str, advice: str) -> UserError:
        """The error that something was `found` in this row, with `advice` on how to repair it."""
        return UserError(f"{self.file}, {self.place}: {found}; {advice}")

    def has(self, column: str) -> bool:
        return self.values.get(column) is not None

    def get(self, *columns: str) -> tuple[str, Any]:
        """The first of `columns` that this row has, with its value."""
        for column in columns:
            if column in self.values:
                return column, self.values[column]
        wanted = " or ".join(f"`{c}`" for c in columns)
        found = ", ".join(sorted(_shown(str(c)) for c in self.values)[:12]) or "none"
        raise self.fail(
            f"no column {wanted} (found: {found})",
            f"add a column {wanted}, or rename the one that holds it",
        )

    def text(self, *columns: str, numbers: bool = False) -> str:
        """A column's text; not blank, and encodable. `numbers=True` accepts a number as text."""
        column, value = self.get(*columns)
        if numbers and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise self.fail(f"`{column}` is {_kind(value)}", f"`{column}` must be text")
        return self.clean(column, value)

    def clean(self, column: str, value: str) -> str:
        """`value`, if it is text that a tokenizer can read; else raises `UserError`."""
        if all(c.isspace() or unicodedata.category(c) == "Cf" for c in value):  # nothing to see
            raise self.fail(f"`{column}` is empty", "give it a text or remove the row")
        if "\0" in value:
            raise self.fail(f"`{column}` holds a NUL character", "remove it")
        if has_lone_surrogate(value):
            raise self.fail(
                f"`{column}` holds a lone surrogate (half of a character)",
                "write the file again as valid UTF-8",
            )
        return value

    def identity(self, split: str, *columns: str) -> str:
        """The row's own id if it has one, else split and line: `eval-17`.

        Slashes become dashes, because ids are the roots of node paths.
        """
        for column in columns:
            if self.has(column):
                value = self.text(column, numbers=True).strip().replace("/", "-")
                if len(value) > 200 or _CONTROL.search(value):
                    raise self.fail(
                        f"`{column}` is longer than 200 characters or holds control characters",
                        "give a short printable id",
                    )
                return value
        return f"{split}-{self.place.split()[-1]}"


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a `.jsonl`, `.csv` or `.parquet` file, in file order; at least one."""
    path = Path(path)
    name = _shown(path)
    readers: dict[str, Callable[[Path, str], Iterator[Row]]] = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _jsonl,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{name}: files ending in {path.suffix or 'nothing'!r} can't be read; give a .jsonl, "
            ".csv or .parquet file"
        )
    # os.path knows no error, where Path's own have one for a name that is too long.
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{name}: is a pipe or a device; give a file")
    try:
        refuse_other_content(path)
        rows = list(reader(path, name))
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; check the path") from None
    except OSError as error:
        reason = _shown(error.strerror or str(error))
        raise UserError(f"{name}: can't be read ({reason}); check the path") from None
    if not rows:
        raise UserError(f"{name}: the file holds no questions; give one with rows")
    return rows


def refuse_other_content(path: Path) -> None:
    """Raises UserError for a file that is something else than a table, by its first bytes."""
    name = _shown(path)
    with path.open("rb") as file:
        # The start is enough for every mark above, and a large file is not read twice.
        start = file.read(100).removeprefix(BOM).lstrip().lower()
    # Such a pointer is the target of a link, `../.git/annex/objects/...`, or starts with "/annex".
    if b"annex/objects/" in start and not start.startswith((b"{", b"[")):
        found = "a git-annex pointer, not the data"
        raise UserError(f"{name}: is {found}; fetch the file with git annex get")
    for mark, (what, advice) in _NOT_A_TABLE.items():
        if start.startswith(mark) and not (mark == b"par1" and path.suffix.lower() == ".parquet"):
            raise UserError(f"{name}: is {what}; {advice}")


def _jsonl(path: Path, name: str) -> Iterator[Row]:
    with path.open("rb") as file:
        number = 0
        # One byte more than allowed, to tell a line that is too long from one that just fits.
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{name}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{place}: longer than {MAX_LINE_BYTES:,} bytes; {_ONE_A_LINE}")
            if line.removeprefix(BOM).strip():
                yield Row(name, f"line {number}", json_object(line, place))


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """The object in one line of a file; UserError names the `place` of what is none."""
    text = _decode(line.removeprefix(BOM), place).strip()
    # How to convert JSON over several lines, which is recognised by the first of them.
    advice = _ONE_A_LINE
    if text.startswith("["):
        advice += " (for an array of objects: jq -c '.[]' FILE)"
    elif text == "{":
        advice += " (for objects over several lines: jq -c . FILE)"
    try:
        value = json.loads(text, object_pairs_hook=no_repeats, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        found = f"column {error.colno}: not JSON ({error.msg})"
        raise UserError(f"{place}, {found}; {advice}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if reason.startswith("Exceeds the limit"):  # of Python, with advice for programmers
            reason = "a number of thousands of digits"
        raise UserError(f"{place}: {reason}; correct the line") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: found {_kind(value)}, not an object; {advice}")
    return value


def _csv(path: Path, name: str) -> Iterator[Row]:
    text = _decode(path.read_bytes().removeprefix(BOM), name)
    # Signs inside quoted names separate nothing.
    header_line = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    for sign, signs in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if sign in header_line and "," not in header_line:
            found = f"the columns are separated by {signs}"
            raise UserError(f"{name}, line 1: {found}; save the file with commas")
    # The limit belongs to the whole process, so it is put back at the end.
    old_limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        # Line breaks inside quoted fields stay as they are with `newline=""`.
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [column.strip() for column in next(filter(None, reader), [])]
        _named_once(header, f"{name}, line {reader.line_num}")
        for number, cells in enumerate(reader, start=1):
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{name}, row {number}: {len(cells)} fields, the header has {len(header)}; "
                    "quote fields that hold commas or line breaks"
                )
            if cells:
                yield Row(name, f"row {number}", dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        line = reader.line_num
        raise UserError(f"{name}, line {line}: not CSV ({error}); quote the fields") from None
    finally:
        csv.field_size_limit(old_limit)


def _named_once(columns: list[str], place: str) -> None:
    if twice := [column for column, count in Counter(columns).items() if count > 1]:
        raise UserError(f"{place}: the column name {show(twice[0])} appears twice; name each once")


def _parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not os.path.isfile(path):
        raise FileNotFoundError(path)
    values: list[dict[str, Any]] = []
    size = 0
    try:
        with pq.ParquetFile(path) as file:
            _named_once(file.schema_arrow.names, name)
            # Its own figures leave out what a dictionary writes a million times: it is counted.
            if file.metadata.num_rows > MAX_PARQUET_ROWS:
                found = f"{file.metadata.num_rows:,} rows, more than {MAX_PARQUET_ROWS:,}"
                raise UserError(f"{name}: holds {found}; split the file")
            # Piece by piece, so that a small file that unpacks to a huge table is refused early.
            for batch in file.iter_batches(batch_size=256):
                rows = batch.to_pylist()
                values += rows
                size += batch.nbytes
                size += sum(len(v) for row in rows for v in row.values() if isinstance(v, str))
                if size > MAX_PARQUET_BYTES:
                    raise UserError(
                        f"{name}: unpacks to over {MAX_PARQUET_BYTES:,} bytes; split it"
                    )
    except (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
        reason = _shown(str(error).split("\n")[0][:120])
        raise UserError(f"{name}: not a readable Parquet file ({reason})") from None
    for number, row in enumerate(values, start=1):
        yield Row(name, f"row {number}", row)


def _decode(data: bytes, place: str) -> str:
    # These marks begin UTF-16, which would otherwise be reported as a wrong byte.
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{place}: UTF-16 text; save the file as UTF-8")
    if b"\0" in data:
        raise UserError(f"{place}: holds a NUL byte; save the file as UTF-8 text without it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1}: not UTF-8 (0x{data[error.start]:02x})"
        raise UserError(f"{place}, {found}; save the file as UTF-8") from None


def _kind(value: Any) -> str:
    kinds = {
        type(None): "null", bool: "a true/false value", int: "a number", float: "a number",
        str: "a text", list: "a list", dict: "an object",
    }  # fmt: skip
    return kinds.get(type(value), f"a {type(value).__name__}")


def _shown(text: str | Path) -> str:
    """Text from outside, made safe for a message."""
    # Soft hyphens and other characters that a terminal does not show are escaped too.
    line = one_line(str(text))[:500]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
