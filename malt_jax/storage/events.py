"""TensorBoard event files of scalar curves; every point is appended whole or not at all.

An event file is a sequence of records: the length of the data, its checksum, a protocol buffer of
type `Event`, its checksum (tensorflow/core/util/event.proto and lib/io/record_writer.h). Only the
few fields that a curve needs are encoded here. tensorboardX is not used for two reasons that were
measured: on a full disk its writer thread dies and the training loop then blocks forever, and
importing even its message types imports torch where that is installed (1.4 s and 207 MB).
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from malt_jax.storage.atomic import append_bytes

PATTERN = "events.out.tfevents.[0-9]*.malt.*"
# The largest finite float32, the type in which a point is stored.
_MAX_FLOAT32 = (2 - 2**-23) * 2.0**127


class EventFile:
    """One event file of a run that starts or resumes at `step`.

    TensorBoard then hides the points of older files in the folder from that step on.
    """

    def __init__(self, folder: Path, step: int):
        # TensorBoard reads the files in the order of their names, whatever the clocks said.
        earlier = [int(path.name.split(".")[3]) for path in folder.glob(PATTERN)]
        stamp = max(int(time.time()), *(second + 1 for second in earlier), 0)
        name = f"events.out.tfevents.{stamp:010d}.malt.{secrets.token_hex(4)}"
        self.path = folder / name
        # Field 3 is the version of the file format; field 7 a session log, whose status 1 means
        # "start".
        version = _message(3, b"brain.Event:2")
        session_start = _message(7, _integer(1, 1))
        self._append(_event(step, version), _event(step, session_start))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Appends one point to the curve of each name."""
        self._append(_event(step, _summary(numbers)))

    def _append(self, *events: bytes) -> None:
        # Not durable: a lost point costs little, a flush would cost every step.
        append_bytes(self.path, b"".join(map(_record, events)), durable=False)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _event(step: int, content: bytes) -> bytes:
    # 0x09 is the tag of field 1 with wire type 1: a float of 64 bits follows.
    wall_time = b"\x09" + struct.pack("<d", time.time())
    return wall_time + _integer(2, step) + content


def _summary(numbers: Mapping[str, float]) -> bytes:
    """A `Summary` with one value per name; numbers beyond float32 become its largest number."""
    values = []
    for name, number in numbers.items():
        tag = _message(1, name.encode("utf-8", "replace"))
        # Field 2 with wire type 5, a float of 32 bits, is the value of the point.
        single = struct.pack("<f", max(-_MAX_FLOAT32, min(_MAX_FLOAT32, number)))
        values.append(_message(1, tag + bytes([2 << 3 | 5]) + single))
    return _message(5, b"".join(values))


def _integer(field: int, value: int) -> bytes:
    """A protocol buffer field of type varint; the value is not negative."""
    # Seven bits per byte, the lowest first; the high bit says that another byte follows.
    encoded = bytearray([field << 3])
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _message(field: int, content: bytes) -> bytes:
    """A protocol buffer field that holds a message or a text; its length is a varint."""
    # Without its first byte, the tag, `_integer` is a bare varint.
    return bytes([field << 3 | 2]) + _integer(0, len(content))[1:] + content


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of TensorFlow's record files."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    # TensorFlow's mask: rotate by 15 bits to the right, then add a constant.
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> list[int]:
    """The CRC of every byte by the (reflected) Castagnoli polynomial."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table
