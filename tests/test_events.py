"""Event files are read back with tensorboardX's protocol buffers and checksums."""

from __future__ import annotations

import errno
import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malt_jax.errors import UserError
from malt_jax.storage import atomic, events
from malt_jax.storage.events import EventFile

proto = pytest.importorskip("tensorboardX.proto.event_pb2")


def read(path: Path) -> list:
    """The file's events as tensorboardX parses them; every checksum is compared."""
    from tensorboardX.crc32c import crc32c

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    found, raw = [], path.read_bytes()
    while raw:
        (length,), rest = struct.unpack("<Q", raw[:8]), raw[12:]
        data, raw = rest[:length], rest[length + 4 :]
        assert struct.unpack("<I", rest[length : length + 4]) == (masked(data),)
        found.append(proto.Event.FromString(data))
    return found


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=40), st.floats(width=32, allow_nan=False), max_size=3))
def test_any_names_and_numbers_round_trip(tmp_path_factory, numbers):
    file = EventFile(tmp_path_factory.mktemp("events"), 300)
    file.add(300, numbers)
    event = read(file.path)[-1]
    assert event.step == 300
    largest = 3.4028234663852886e38
    said = {value.tag: value.simple_value for value in event.summary.value}
    assert said == {name: max(-largest, min(largest, x)) for name, x in numbers.items()}


def test_files_are_in_the_order_of_the_runs_whatever_the_clock_says(tmp_path, monkeypatch):
    made = []
    for now in (2e9, 2e9, 1e9):
        monkeypatch.setattr(events.time, "time", lambda now=now: now)
        made.append(EventFile(tmp_path, 1).path)
    assert made == sorted(tmp_path.iterdir())


def test_an_event_file_starts_a_session_and_holds_its_points(tmp_path):
    file = EventFile(tmp_path / "train", 3)
    file.add(3, {"loss": 1.5, "margin": -2.0})
    file.add(4, {})
    version, start, point, empty = read(file.path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == 1 and start.step == 3
    assert [(v.tag, v.simple_value) for v in point.summary.value] == [("loss", 1.5), ("margin", -2)]
    assert empty.step == 4 and point.wall_time > 1.6e9


def test_a_full_disk_gives_one_sentence_and_leaves_complete_records(tmp_path, monkeypatch):
    file = EventFile(tmp_path, 0)
    whole = file.path.read_bytes()

    class Full(io.FileIO):
        """Takes ten bytes, then nothing more."""

        taken = 0

        def write(self, data):
            if self.taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.taken = super().write(bytes(data)[:10])
            return self.taken

    full = lambda handle, mode, buffering: Full(handle, mode)  # noqa: E731
    monkeypatch.setattr(atomic, "open", full, raising=False)
    with pytest.raises(UserError, match="No space left"):
        file.add(1, {"loss": 1.0})
    assert file.path.read_bytes() == whole
