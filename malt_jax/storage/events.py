"""TensorBoard event files of scalars, written at once or not at all.

An event file is a sequence of records: length, its checksum, a protocol buffer of type `Event`, its
checksum (tensorflow/core/util/event.proto and lib/io/record_writer.h). Only the few fields that a
curve needs are written here. A library would write from threads of its own, where a full disk is an
error that nobody catches.
"""

from __future__ import annotations

import os
import secrets
import struct
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from malt_jax.storage.atomic import explained, make_folder

_LARGEST = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]


class EventFile:
    """One event file of a run that is begun or resumed at `step`.

    TensorBoard then leaves out the points at that step and beyond of older files in the folder.
    """

    def __init__(self, folder: Path, step: int):
        name = f"events.out.tfevents.{int(time.time()):010d}.malt.{secrets.token_hex(4)}"
        self.path = folder / name
        with explained(self.path):
            make_folder(folder)
        version = _text(3, "brain.Event:2")
        session_starts = _message(7, _number(1, 1))
        self._append(_event(step, version), _event(step, session_starts))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Appends a point to the curve of each name, whole or not at all."""
        values = (_message(1, _text(1, name) + _single(2, x)) for name, x in numbers.items())
        self._append(_event(step, _message(5, b"".join(values))))

    def _append(self, *events: bytes) -> None:
        with explained(self.path), open(self.path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                rest = memoryview(b"".join(map(_record, events)))
                while rest:
                    rest = rest[file.write(rest) :]
            except BaseException:
                os.truncate(self.path, size)
                raise


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _event(step: int, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + _number(2, step) + content


def _number(field: int, value: int) -> bytes:
    """A field of type varint; the value is not negative."""
    return bytes([field << 3]) + bytes(_varint(value))


def _single(field: int, value: float) -> bytes:
    """A field of type float, at most the largest one."""
    return bytes([field << 3 | 5]) + struct.pack("<f", max(-_LARGEST, min(_LARGEST, value)))


def _message(field: int, content: bytes) -> bytes:
    """A field that holds a message, or the bytes of a text."""
    return bytes([field << 3 | 2]) + bytes(_varint(len(content))) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode("utf-8", "replace"))


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and offset as TensorFlow's records have it."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> list[int]:
    """The remainders of every byte by the polynomial of Castagnoli, reflected."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table
