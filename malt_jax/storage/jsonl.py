"""Append-only JSON Lines files ("shards"): one record per line, never changed once written.

A killed writer can tear only the last line, which `recover` drops so that its work is done again.
Damage anywhere else is refused with the file and the line number.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from malt_jax.checks import no_constant
from malt_jax.errors import UserError
from malt_jax.regular_files import open_regular, read_bytes
from malt_jax.storage.atomic import append_bytes, explained
from malt_jax.storage.writers import is_writer

Record = TypeVar("Record")


def encode(record: dict[str, Any]) -> bytes:
    """One line of UTF-8 JSON with its newline; keys keep the record's order.

    Any text can be stored: lone surrogates, which UTF-8 lacks, are written as `\\udXXX` escapes
    (and a high one followed by a low one reads back as the character they encode). Raises
    ValueError for NaN and infinity.
    """
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def append_lines(
    path: str | os.PathLike, records: Iterable[dict[str, Any]], durable: bool = True
) -> None:
    """Appends the records in one write; with `durable`, they have reached the disk on return.

    Raises UserError if the write fails, which is then undone, or if the last line is torn.
    """
    path = Path(path)
    # The last byte shows a torn line. Appending to it would join two records into a damaged one.
    if is_writer() and path.is_file() and path.stat().st_size:
        with explained(path), open(open_regular(path, os.O_RDWR), "rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                raise UserError(f"{path}: its last line is torn; recover it before appending.")
    append_bytes(path, b"".join(map(encode, records)), durable=durable)


def read_lines(
    path: str | os.PathLike, needs: Collection[str] = (), *, torn: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields the records of a shard; one that lacks a field in `needs` counts as damaged.

    `torn`: see `read_records`.
    """

    def complete(record: dict[str, Any]) -> dict[str, Any]:
        if missing := [field for field in needs if field not in record]:
            raise ValueError(f"one without {', '.join(missing)}")
        return record

    return read_records(path, complete, torn=torn)


def read_records(
    path: str | os.PathLike, parse: Callable[[dict[str, Any]], Record], *, torn: bool = False
) -> Iterator[Record]:
    """Yields the lines of a shard as typed records.

    A line that is damaged, or that `parse` refuses with a ValueError, raises `UserError` with its
    number. With `torn` the last line may be damaged, which is then left out, and may lack its
    newline: what `recover` with `keep_whole` would make of the file, read without changing it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; run the stage that writes it first.")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for number, line in enumerate(file, start=1):
            last = torn and file.tell() >= size
            if last and not _is_whole(line):
                return
            try:
                record = parse(_decode(_ended(line) if last else line))
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}:{number}: expected one record on a line, found {error}; restore the "
                    "file or remove it and run the stage again."
                ) from error
            yield record


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file, None without one; `UserError` with a remedy for a damaged one."""
    if not path.exists():
        return None
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}.") from error


def recover(path: str | os.PathLike, *, keep_whole: bool = False) -> int:
    """Drops a torn last line (no newline, or not JSON) and returns the number of bytes dropped.

    With `keep_whole` a record that lacks nothing but its newline gets it and is kept: the beginning
    of an object is never an object.
    """
    path = Path(path)
    if not is_writer() or not path.exists():
        return 0
    with explained(path), open(open_regular(path, os.O_RDWR), "r+b") as file:
        # `start` is where the last line begins, which is the new length of the file if it is torn.
        start, last = 0, b""
        for line in file:
            start, last = start + len(last), line
        # Only the last line is parsed here; `read_lines` finds and refuses damage further up.
        if not last or (_is_whole(last) and last.endswith(b"\n")):
            return 0
        if keep_whole and _is_whole(last):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())
            return 0
        file.truncate(start)
        os.fsync(file.fileno())
    print(f"{path}: dropped a torn last line; its work is done again", file=sys.stderr)
    return len(last)


def _is_whole(line: bytes) -> bool:
    """Whether a line is a record, with or without its newline."""
    try:
        _decode(_ended(line))
    except (ValueError, RecursionError):
        return False
    return True


def _ended(line: bytes) -> bytes:
    return line.removesuffix(b"\n") + b"\n"


def _decode(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("a torn line")
    record = json.loads(line.decode("utf-8"), parse_constant=no_constant)
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}")
    return record
