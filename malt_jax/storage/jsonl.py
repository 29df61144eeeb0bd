"""Append-only shards of JSON lines.

A line is written once and never changed. A writer that is killed can tear only the last line: that
line is work owed again (`recover`); damage anywhere else is refused by file and line.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from malt_jax.errors import UserError
from malt_jax.storage.atomic import explained, make_folder, open_regular, sync
from malt_jax.storage.writers import writes

Record = TypeVar("Record")


def encode(record: dict[str, Any]) -> bytes:
    """One line of UTF-8 JSON with its newline, keys in the record's own order.

    Any text is accepted: lone surrogates, which UTF-8 cannot hold, are written as `\\udXXX` escapes
    (and a high one followed by a low one reads back as the character they stand for). Raises
    ValueError for NaN and infinity.
    """
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def append_lines(
    path: str | os.PathLike, records: Iterable[dict[str, Any]], durable: bool = True
) -> None:
    """Appends the records in one write; when this returns they are on the disk (if `durable`).

    A write that fails half-way (a full disk) is taken back before `UserError` is raised.
    """
    if not writes():
        return
    path = Path(path)
    data = b"".join(map(encode, records))
    with explained(path):
        make_folder(path.parent)
        is_new = not path.exists()
        handle = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with open(handle, "a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                raise UserError(f"{path}: its last line is torn; recover it before appending.")
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                if durable:
                    os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
        if is_new and durable:
            sync(path.parent)


def read_lines(path: str | os.PathLike, needs: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Yields the records of a shard; the first damaged line raises `UserError` naming it.

    A line without one of the fields it `needs` is damaged as well.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; run the stage that writes it first.")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = _decode(line)
                if missing := [field for field in needs if field not in record]:
                    raise ValueError(f"one without {', '.join(missing)}")
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}:{number}: expected one JSON object and a newline, found {error}; "
                    "restore the file or remove it and run the stage again."
                ) from error
            yield record


def recover(path: str | os.PathLike) -> int:
    """Truncates a torn last line (no newline, or not JSON), says so, returns the bytes dropped."""
    path = Path(path)
    if not writes() or not path.exists() or path.stat().st_size == 0:
        return 0
    with explained(path), open(open_regular(path, os.O_RDWR), "r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            size = len(view)
            start = view.rfind(b"\n", 0, size - 1) + 1
            last = view[start:]
        try:
            _decode(last)
            return 0
        except (ValueError, RecursionError):
            file.truncate(start)
            os.fsync(file.fileno())
    print(f"{path}: the last line was torn and is dropped; it will be done again", file=sys.stderr)
    return size - start


def _decode(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("a torn line")
    record = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def read_records(
    path: str | os.PathLike, parse: Callable[[dict[str, Any]], Record]
) -> Iterator[Record]:
    """Yields the lines of a shard as typed records.

    A line that `parse` refuses with a ValueError raises `UserError` naming it, as a damaged one.
    """
    for number, line in enumerate(read_lines(path), start=1):
        try:
            record = parse(line)
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: found {error}; restore the file or remove it and run the stage "
                "again."
            ) from error
        yield record
