"""Atomic files, shards and the lock under kills, full disks, torn lines and a second writer."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malt_jax.errors import Unavailable, UserError
from malt_jax.storage import lock
from malt_jax.storage.atomic import (
    atomic_directory,
    clean_leftovers,
    write_bytes,
    write_json,
    write_text,
)
from malt_jax.storage.jsonl import append_lines, encode, read_lines, recover
from malt_jax.storage.lock import RunLock


def spawn(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill(child: subprocess.Popen) -> None:
    child.kill()
    child.wait()
    child.stdout.close()
    child.stderr.close()


def fails_with(code: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- atomic writes


def test_a_killed_writer_leaves_the_old_or_the_new_content(tmp_path):
    """SIGKILL at random moments of a loop that replaces a file and a folder."""
    code = """
import sys
from pathlib import Path
from malt_jax.storage.atomic import atomic_directory, write_bytes
folder = Path(sys.argv[1])
print("ready", flush=True)
n = 0
while True:
    n += 1
    write_bytes(folder / "file", (b"%06d" % n) * 50_000)
    with atomic_directory(folder / "dir", replace=True) as new:
        for part in range(5):
            (new / str(part)).write_bytes((b"%06d" % n) * 1000)
"""
    generator = random.Random(0)
    for _ in range(12):
        child = spawn(code, tmp_path)
        child.stdout.readline()
        time.sleep(generator.uniform(0.005, 0.08))
        kill(child)
        clean_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {"file", "dir"}
        if (tmp_path / "file").exists():
            data = (tmp_path / "file").read_bytes()
            assert data == data[:6] * 50_000
        if (tmp_path / "dir").exists():
            parts = [path.read_bytes() for path in (tmp_path / "dir").iterdir()]
            assert len(parts) == 5 and len(set(parts)) == 1 and len(parts[0]) == 6000
    assert (tmp_path / "file").exists() and (tmp_path / "dir").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_an_error_of_the_disk_leaves_the_old_content(tmp_path, monkeypatch, code, call):
    target = tmp_path / "file"
    if call == "mkdir":
        target = tmp_path / "new" / "file"
    else:
        target.write_text("old")
    before = listing(tmp_path)
    monkeypatch.setattr(os, call, fails_with(code))
    with pytest.raises(UserError, match=f"{target.name}.*{os.strerror(code)}.*unchanged"):
        write_text(target, "new")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_share_that_cannot_flush_folders_holds_files_all_the_same(tmp_path, monkeypatch, code):
    flush = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        flush(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_text(tmp_path / "new" / "file", "x")
    append_lines(tmp_path / "shard", [{"n": 1}])
    assert listing(tmp_path) == {"new/file": b"x", "shard": b'{"n":1}\n'}


def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path):
    write_text(tmp_path / ("é" * 127), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["é" * 127]


def test_a_full_disk_gives_one_sentence_and_leaves_the_old_content(tmp_path):
    """On a file system in memory, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        write_bytes(disk / "file", b"old")
        append_lines(disk / "shard.jsonl", [{"n": 1}])
        with pytest.raises(UserError, match="No space left on device"):
            write_bytes(disk / "file", bytes(1_000_000))
        with pytest.raises(UserError, match="No space left on device"):
            append_lines(disk / "shard.jsonl", [{"n": "x" * 1_000_000}])
        with (
            pytest.raises(UserError, match="No space left on device"),
            atomic_directory(disk / "export") as new,
        ):
            (new / "weights").write_bytes(bytes(1_000_000))
        assert listing(disk) == {"file": b"old", "shard.jsonl": b'{"n":1}\n'}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_recognised_in_a_librarys_own_error(tmp_path):
    with (
        pytest.raises(UserError, match="free space"),
        atomic_directory(tmp_path / "export"),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert listing(tmp_path) == {}


def test_other_errors_are_not_reported_as_disk_errors(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "export") as new:
        (new / "weights").write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_built_in_place_of_an_empty_one_but_not_of_a_full_one(tmp_path):
    (tmp_path / "export").mkdir()
    with atomic_directory(tmp_path / "export") as new:
        (new / "a").write_text("1")
    with (
        pytest.raises(UserError, match="already exists"),
        atomic_directory(tmp_path / "export"),
    ):
        pytest.fail("the block must not run")
    assert listing(tmp_path) == {"export/a": b"1"}


def test_a_failed_replacement_restores_the_old_folder(tmp_path, monkeypatch):
    with atomic_directory(tmp_path / "export") as new:
        (new / "a").write_text("old")
    rename = os.rename

    def fail_second(source, target):
        if Path(source).name.startswith(".tmp-malt-"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    with (
        pytest.raises(UserError, match="Input/output error"),
        atomic_directory(tmp_path / "export", replace=True) as new,
    ):
        (new / "a").write_text("new")
    assert listing(tmp_path) == {"export/a": b"old"}


def test_a_replacement_killed_between_its_two_renames_is_undone(tmp_path):
    (tmp_path / "a/.old-malt-0123abcd-export").mkdir(parents=True)
    (tmp_path / "a/.old-malt-0123abcd-export/weights").write_text("old")
    (tmp_path / "a/.tmp-malt-4567cdef-export").mkdir()
    clean_leftovers(tmp_path)
    assert listing(tmp_path) == {"a/export/weights": b"old"}


def test_what_the_writer_of_a_run_beneath_is_writing_is_left_alone(tmp_path):
    for name in ("a/.tmp-malt-0123abcd-x", "evals/b/.tmp-malt-0123abcd-x", "evals/b/.lock"):
        write_text(tmp_path / name, name)
    clean_leftovers(tmp_path)
    assert listing(tmp_path).keys() == {"evals/b/.tmp-malt-0123abcd-x", "evals/b/.lock"}


@pytest.mark.parametrize("name", [".tmp-thesis", ".old-thesis", ".tmp-malt-x-thesis"])
def test_files_that_only_resemble_leftovers_are_kept(tmp_path, name):
    write_bytes(tmp_path / "a" / name / "x.tex", b"mine")
    clean_leftovers(tmp_path)
    assert listing(tmp_path) == {f"a/{name}/x.tex": b"mine"}


def test_links_and_pipes_are_never_written_to(tmp_path):
    write_bytes(tmp_path / "precious", b'{"a":1}\ntorn')
    (tmp_path / "link").symlink_to("precious")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a link"):
        append_lines(tmp_path / "link", [{}])
    with pytest.raises(UserError, match="is a link"):
        recover(tmp_path / "link")
    with pytest.raises(UserError, match="not a regular file"):
        append_lines(tmp_path / "pipe", [{}])
    assert (tmp_path / "precious").read_bytes() == b'{"a":1}\ntorn'


def test_writing_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": "é\udc80"})
    before = (tmp_path / "x.json").read_bytes()
    assert json.loads(before) == {"a": "é\udc80"}
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert (tmp_path / "x.json").read_bytes() == before


# ---------------------------------------------------------------- JSONL shards

anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=8,
)


def joined(text: str) -> str:
    """Joins adjacent surrogates into the character they encode, as JSON does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@settings(deadline=None)
@given(st.lists(st.dictionaries(anything.map(joined), json_values, max_size=3), max_size=4))
def test_any_text_round_trips_through_a_shard(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("shard") / "x.jsonl"
    append_lines(path, records)
    assert path.read_bytes().count(b"\n") == len(records)
    path.read_bytes().decode("utf-8")  # always valid UTF-8, for every other reader
    expected = json.loads(json.dumps(records))  # through ASCII escapes: an independent path
    assert list(read_lines(path)) == expected
    assert recover(path) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError):
        append_lines(tmp_path / "x.jsonl", [{"fine": 1}, {"bad": value}])
    assert list(tmp_path.iterdir()) == []


def test_recovery_drops_a_last_line_torn_anywhere_and_nothing_else(tmp_path, capsys):
    records = [{"question_id": f"Q{n}", "text": "naïve\u2028 \n" * n} for n in range(4)]
    data = b"".join(map(encode, records))
    kept = len(data) - len(encode(records[-1]))
    path = tmp_path / "x.jsonl"
    for end in range(kept + 1, len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"x\.jsonl:4"):
            list(read_lines(path))
        with pytest.raises(UserError, match="torn"):
            append_lines(path, [records[-1]])
        assert recover(path) == end - kept
        assert "torn" in capsys.readouterr().err
        append_lines(path, [records[-1]])
        assert path.read_bytes() == data


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b'{"a":1}', b'{"a":', b"\n", b"\n", b"[1]", b"\0"])).map(b"".join),
    st.integers(0, 9),
)
def test_a_torn_file_reads_as_it_will_be_once_it_is_recovered(tmp_path_factory, raw, cut):
    path = tmp_path_factory.mktemp("torn") / "x.jsonl"
    raw = b'{"a":0}\n' + raw[: len(raw) - cut]
    path.write_bytes(raw)

    def read(**how) -> list | str:
        try:
            return list(read_lines(path, **how))
        except UserError as refusal:
            return str(refusal)

    seen = read(torn=True)
    assert path.read_bytes() == raw
    dropped = recover(path, keep_whole=True)
    assert seen == read()
    assert path.read_bytes() in (raw[: len(raw) - dropped], raw + b"\n")
    # A record that lacks its newline was written as a whole.
    assert dropped == 0 or not raw.endswith(b'{"a":1}') or b'\n{"a":1}' not in raw[-8:]


def test_a_tail_of_zeros_after_a_power_cut_is_dropped_as_a_torn_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(encode({"n": 1}) + bytes(4096))
    assert recover(path) == 4096
    assert list(read_lines(path)) == [{"n": 1}]


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"",
            b"{",
            b"12",
            b"[1]",
            b'{"a": NaN}',
            b'\xff\xfe{"a":1}',
            b'\xef\xbb\xbf{"a":1}',
            b"\0",
        ),
        *(b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"),
    ],
)
def test_damage_before_the_last_line_is_refused_with_file_and_line(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(encode({"n": 1}) + line + b"\n" + encode({"n": 3}))
    assert recover(path) == 0
    with pytest.raises(UserError, match=r"x\.jsonl:2: .*remove it"):
        list(read_lines(path))


@settings(deadline=None)
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from([b"{", b"}", b"\n", b'"a":1'])).map(b"".join)
)
def test_any_bytes_read_as_records_or_are_refused(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("fuzz") / "x.jsonl"
    path.write_bytes(raw)
    recover(path)
    assert raw.startswith(path.read_bytes())
    try:
        assert all(isinstance(record, dict) for record in read_lines(path))
    except UserError as refusal:
        assert "x.jsonl:" in str(refusal)


def test_a_failed_append_is_undone(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    append_lines(path, [{"n": 1}])
    monkeypatch.setattr(os, "fsync", fails_with(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left"):
        append_lines(path, [{"n": 2}])
    assert path.read_bytes() == encode({"n": 1})


def test_a_killed_append_loses_at_most_the_line_being_written(tmp_path):
    code = """
import sys
from malt_jax.storage.jsonl import append_lines, read_lines, recover
path = sys.argv[1]
recover(path)
done = sum(1 for _ in read_lines(path)) if __import__("os").path.exists(path) else 0
print("ready", flush=True)
while True:
    append_lines(path, [{"n": done, "text": "x" * 200_000}])
    done += 1
    print(done, flush=True)
"""
    path, generator = tmp_path / "x.jsonl", random.Random(1)
    for _ in range(6):
        child = spawn(code, path)
        child.stdout.readline()
        time.sleep(generator.uniform(0.005, 0.05))
        child.kill()
        promised = child.stdout.read().split()
        kill(child)
        recover(path)
        numbers = [record["n"] for record in read_lines(path)]
        assert numbers == list(range(len(numbers)))  # none lost, none twice
        assert not promised or len(numbers) >= int(promised[-1])


# ---------------------------------------------------------------- one writer


def test_a_second_writer_is_told_which_process_holds_the_run(tmp_path):
    with RunLockHeld(tmp_path, "malt run"), pytest.raises(UserError) as refusal:
        RunLock(tmp_path, "malt train")
    assert f"process {os.getpid()} on " in str(refusal.value)
    assert "malt run" in str(refusal.value) and refusal.value.status == 2
    RunLock(tmp_path, "malt train").release()


@pytest.mark.parametrize(
    "gone",
    [
        {"host": "of a machine that is gone"},
        {"pid": 1 << 30},
        {"pid": os.getpid()},  # of another container: in each the first process has this number
    ],
)
def test_a_lock_that_outlives_its_holder_is_tried_again_by_launchers(tmp_path, gone, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.01)
    with RunLockHeld(tmp_path, "malt run"):
        path = tmp_path / ".lock"
        path.write_text(json.dumps(json.loads(path.read_text()) | gone))
        monkeypatch.setattr(lock, "_HELD", set())  # as if another process held it
        with pytest.raises(Unavailable, match="is writing this run"):
            RunLock(tmp_path, "malt run")


class RunLockHeld:
    def __init__(self, path, command):
        self.lock = RunLock(path, command)

    def __enter__(self):
        return self.lock

    def __exit__(self, *_):
        self.lock.release()


@pytest.mark.parametrize("content", [b"", b"garbage", b"[1]", b'{"pid": 1}'])
def test_a_lock_file_with_unreadable_content_still_locks(tmp_path, content):
    with RunLockHeld(tmp_path, "malt run"):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(UserError, match="another process"):
            RunLock(tmp_path, "malt run")


def test_a_lock_ends_with_its_process_even_if_a_forked_worker_survives(tmp_path):
    code = """
import os, sys, time
from malt_jax.storage.lock import RunLock
lock = RunLock(sys.argv[1], "malt run")
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""
    child = spawn(code, tmp_path)
    worker = int(child.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"process {child.pid} on "):
            RunLock(tmp_path, "malt run")
        kill(child)
        RunLock(tmp_path, "malt run").release()
    finally:
        os.kill(worker, signal.SIGKILL)
