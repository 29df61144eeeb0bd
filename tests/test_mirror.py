"""A mirror always holds a run that can be continued, on a machine that has no file of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import fsspec
import pytest

from malt_jax.errors import UserError
from malt_jax.storage import manifest, mirror, selfsealed
from malt_jax.storage.atomic import write_bytes
from malt_jax.storage.rundir import RunDir

CONFIG = {"seed": 3, "task": {"name": "arithmetic"}}


@pytest.fixture(params=["memory", "folder", "s3"])
def url(request, tmp_path, monkeypatch) -> Iterator[str]:
    """An empty place for a mirror; for S3, moto runs a server on this machine."""
    if request.param == "folder":
        yield str(tmp_path / "mirror")
    elif request.param == "memory":
        yield "memory://bucket/run"
        fsspec.filesystem("memory").rm("/bucket", recursive=True)
    else:
        pytest.importorskip("s3fs")
        server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
        server.start()
        host, port = server.get_host_and_port()
        where = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
        monkeypatch.setitem(fsspec.config.conf, "s3", where)
        fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)
        yield f"s3://bucket/{tmp_path.name}"
        server.stop()


def opened(path: Path, url: str | None = None, **config: object) -> RunDir:
    return RunDir.open(path, {**CONFIG, **config}, "malt test", mirror=url)


def sealed(run: RunDir, name: str, content: bytes) -> None:
    write_bytes(run.path / name, content)
    manifest.seal(run, "search/000", [run.path / name], done=False)


def facts(run: Path) -> dict:
    """What a copy has in common with its run; it is a copy of its own from its fetch on."""
    apart = ("writes", "lineage", selfsealed.KEY)
    return {name: value for name, value in manifest.load(run).items() if name not in apart}


def test_a_run_continues_from_its_mirror(tmp_path, url):
    with opened(tmp_path / "one", url) as run:
        sealed(run, "rounds/000/trees/a.jsonl", b"{}\n")
        mirror.push(run, url)
        sealed(run, "rounds/000/trees/b.jsonl", b"{}\n{}\n")
        mirror.push(run, url)
    with opened(tmp_path / "two", url) as again:
        manifest.verify(again)
        units = manifest.sealed_units(again, "search/000")
        assert [unit.name for unit in units] == ["a.jsonl", "b.jsonl"]
        assert units[1].read_bytes() == b"{}\n{}\n"
        assert facts(again.path) == facts(tmp_path / "one")


def test_a_kill_while_a_file_is_replaced_leaves_a_run_that_can_be_continued(tmp_path, url):
    """A file that was made again has the place of the one that the old manifest names."""
    with opened(tmp_path / "one", url) as run:
        sealed(run, "rounds/000/trees/a.jsonl", b"{}\n")
        write_bytes(run.path / "report.html", b"the first page")
        manifest.seal(run, "report", [run.path / "report.html"])
        mirror.push(run, url)
        manifest.reopen(run, "report")
        write_bytes(run.path / "report.html", b"a longer second page")
        manifest.seal(run, "report", [run.path / "report.html"])
        killed = Mock(side_effect=[None, KeyboardInterrupt])
        put = mirror.Store.put_bytes

        def put_bytes(store, data, name):
            if name == manifest.NAME:
                killed()
            put(store, data, name)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(mirror.Store, "put_bytes", put_bytes)
            mirror.push(run, url)
        mirror.pull(url, tmp_path / "two")
        with contextlib.closing(opened(tmp_path / "two")) as again:
            manifest.verify(again)
            assert manifest.sealed_units(again, "search/000")
            assert not manifest.stage_done(again, "report")
        mirror.push(run, url)
    with opened(tmp_path / "three", url) as whole:
        manifest.verify(whole)
        assert facts(whole.path) == facts(tmp_path / "one")


def test_of_an_unsealed_file_a_torn_line_is_not_mirrored(tmp_path, url):
    with opened(tmp_path / "one", url) as run:
        write_bytes(run.path / "rounds/000/trees/torn.jsonl", b'{"a"')
        mirror.push(run, url)
    with opened(tmp_path / "two", url) as again:
        # Unfinished work is copied, but of a line that is being written nothing.
        assert not any(path.read_bytes() for path in again.path.glob("rounds/**/*.jsonl"))


def test_only_new_files_are_copied(tmp_path, url, monkeypatch):
    with opened(tmp_path / "one", url) as run:
        sealed(run, "a.jsonl", b"{}\n")
        mirror.push(run, url)
        (run.path / "a.jsonl").unlink()  # copying it again would now fail
        sealed(run, "b.jsonl", b"{}\n")
        mirror.push(run, url)


def test_the_mirror_of_another_run_is_refused_by_field(tmp_path, url):
    with opened(tmp_path / "one", url) as run:
        mirror.push(run, url)
    with pytest.raises(UserError, match="seed was 3 and is now 4"):
        opened(tmp_path / "two", url, seed=4)
    with opened(tmp_path / "three", seed=5) as other, pytest.raises(UserError, match="another run"):
        mirror.push(other, url)


def test_a_killed_fetch_is_repeated(tmp_path, url, monkeypatch):
    with opened(tmp_path / "one", url) as run:
        sealed(run, "a.jsonl", b"{}\n")
        mirror.push(run, url)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(mirror, "sync_tree", Mock(side_effect=KeyboardInterrupt))
        opened(tmp_path / "two", url)
    assert (tmp_path / "two" / "a.jsonl").exists()
    with pytest.raises(UserError, match="not a run directory"):
        opened(tmp_path / "two")
    with opened(tmp_path / "two", url) as again:
        manifest.verify(again)
        assert not (again.path / mirror.BEGUN).exists()


def test_a_damaged_mirrored_file_is_refused_when_it_is_verified(tmp_path):
    url = str(tmp_path / "mirror")
    with opened(tmp_path / "one", url) as run:
        sealed(run, "a.jsonl", b"{}\n")
        mirror.push(run, url)
    Path(url, "a.jsonl").write_bytes(b"[]\n")
    with opened(tmp_path / "two", url) as again, pytest.raises(UserError, match=r"a\.jsonl"):
        manifest.verify(again)


@pytest.mark.parametrize("url", ["nowhere://bucket/run", "/dev/null/mirror"])
def test_a_store_that_cannot_be_written_is_named(tmp_path, url):
    with opened(tmp_path / "one") as run, pytest.raises(UserError, match=f"mirror: {url}"):
        mirror.push(run, url)


def test_fetching_from_a_place_without_a_run_makes_nothing(tmp_path):
    assert not mirror.pull(str(tmp_path / "empty"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def mirrored(tmp_path: Path) -> Path:
    """A mirror in a folder, which somebody else could have made."""
    url = tmp_path / "mirror"
    with opened(tmp_path / "one", str(url)) as run:
        sealed(run, "a.jsonl", b"{}\n")
        mirror.push(run, str(url))
    return url


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("path", ["../../escaped.txt", "/tmp/malt-escaped.txt", ".", ""])
def test_a_mirrors_paths_cannot_lead_out_of_the_run(tmp_path, path):
    url = mirrored(tmp_path)
    data = manifest.load(url)
    data["artefacts"][path] = data["artefacts"]["a.jsonl"]
    (url / manifest.NAME).write_bytes(selfsealed.encode(data))
    before = listing(tmp_path)
    for fetch in (
        lambda: opened(tmp_path / "o" / "p" / "two", str(url)),
        lambda: mirror.pull(str(url), tmp_path / "o" / "p"),
    ):
        with pytest.raises(UserError, match="leaves the run directory"):
            fetch()
    assert listing(tmp_path) == before and not Path("/tmp/malt-escaped.txt").exists()


@pytest.mark.parametrize(
    ("name", "content"), [(manifest.NAME, b"[]"), ("config.yaml", b"5"), ("config.yaml", b"[")]
)
def test_a_mirror_with_malformed_files_is_refused_and_leaves_nothing(tmp_path, name, content):
    url = mirrored(tmp_path)
    (url / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        opened(tmp_path / "new" / "two", str(url))
    assert not (tmp_path / "new").exists()
    (url / name).unlink()
    if name == "config.yaml":
        with pytest.raises(UserError, match="could not be read"):
            mirror.pull(str(url), tmp_path / "new" / "two")
        assert listing(tmp_path / "new" / "two") == []


@pytest.mark.parametrize("url", ["foo://x", "file"])
def test_an_unreadable_mirror_leaves_no_run_directory(tmp_path, url):
    (tmp_path / "file").write_text("mine")
    url = url if "://" in url else str(tmp_path / url)
    with pytest.raises(UserError, match=r"mirror: .*choose another mirror"):
        opened(tmp_path / "runs" / "run", url)
    assert listing(tmp_path) == ["file"]


@pytest.mark.parametrize("place", ["run", "run/mirror", ".", "link"])
def test_a_mirror_that_overlaps_the_run_directory_is_refused(tmp_path, place):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="share files"):
        opened(tmp_path / "run", str(tmp_path / place))
    assert listing(tmp_path) == ["link"]


@pytest.mark.parametrize("place", ["one", "one/backup", "link/backup", "begun"])
def test_a_mirror_is_not_made_in_the_run_directory_of_another_run(tmp_path, place):
    opened(tmp_path / "one").close()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    # A run whose creation was interrupted has a lock file and no manifest yet.
    (tmp_path / "begun").mkdir()
    shutil.copy(tmp_path / "one/.lock", tmp_path / "begun/.lock")
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"mirror: .* the run directory .*(one|begun)"):
        opened(tmp_path / "two", str(tmp_path / place))
    assert listing(tmp_path) == before


def test_a_lock_file_of_another_program_makes_no_folder_a_run(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/.lock").touch()
    opened(tmp_path / "one", str(tmp_path / "store/mirror")).close()


def test_a_run_is_not_made_in_the_mirror_of_another_run(tmp_path):
    with opened(tmp_path / "one", str(tmp_path / "mirror")) as run:
        sealed(run, "a.jsonl", b"{}\n")
        mirror.push(run, str(tmp_path / "mirror"))
    before = listing(tmp_path)
    with pytest.raises(UserError, match="the mirror of a run"):
        opened(tmp_path / "mirror/ablations/two")
    assert listing(tmp_path) == before
    # What other programs call a manifest says nothing.
    for content in ("[]", "{}", "[" * 100_000):
        (tmp_path / "manifest.json").write_text(content)
        opened(tmp_path / "three").close()
    # The mirror remains one: of its own run, of a bare machine, and of the run's variants.
    for name in ("one", "bare"):
        opened(tmp_path / name, str(tmp_path / "mirror")).close()
        assert (tmp_path / name / "a.jsonl").exists()
    with opened(tmp_path / "one") as outer:
        folder, store = outer.path / "ablations/a", str(tmp_path / "mirror/ablations/a")
        RunDir.open(folder, CONFIG, "malt test", mirror=store, inside=outer).close()


def test_a_mirror_that_cannot_be_written_is_named_once(tmp_path, capsys):
    with (
        pytest.raises(UserError, match=r"^mirror: /proc/x: no folder can be made there") as found,
        opened(tmp_path / "one", "/proc/x/y") as run,
    ):
        sealed(run, "a.jsonl", b"{}\n")
        run.copy_sealed()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            run.copy_sealed()
            time.sleep(0.01)
    assert str(found.value) not in capsys.readouterr().err


def make_special(path: Path, kind: str) -> None:
    """Puts something that is not a plain file or folder at `path`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path.name)
        case "device":
            path.symlink_to("/dev/zero")
        case "link":
            path.symlink_to(__file__)
        case "loop":
            path.symlink_to(path.name)
        case "folder":
            path.mkdir()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link", "loop", "folder"])
@pytest.mark.parametrize("name", [manifest.NAME, "config.yaml", "metrics.jsonl", "trees/a.jsonl"])
def test_only_plain_files_of_a_mirror_are_read_or_written(tmp_path, name, kind):
    url = tmp_path / "mirror"
    with opened(tmp_path / "one") as run:
        sealed(run, "trees/a.jsonl", b"{}\n")
        write_bytes(run.metrics, b"")
        mirror.push(run, str(url))
        make_special(url / name, kind)
        with pytest.raises(UserError, match=f"{name} is a link, or not a file"):
            opened(tmp_path / "two", str(url))
        assert not (tmp_path / "two").exists()
        write_bytes(run.path / "trees/a.jsonl", b"{}\n{}\n")
        manifest.seal(run, "search/000", [run.path / "trees/a.jsonl"])
        with pytest.raises(UserError, match=f"{name} is a link, or not a file"):
            mirror.push(run, str(url))


@pytest.mark.parametrize("kind", ["pipe", "link", "loop"])
def test_only_plain_folders_of_a_mirror_are_read_or_written(tmp_path, kind):
    url = tmp_path / "mirror"
    with opened(tmp_path / "one") as run:
        sealed(run, "trees/a.jsonl", b"{}\n")
        mirror.push(run, str(url))
        make_special(url / "trees", kind)
        with pytest.raises(UserError, match="trees is a link, or not a folder"):
            opened(tmp_path / "two", str(url))
        sealed(run, "trees/b.jsonl", b"{}\n")
        with pytest.raises(UserError, match="trees is a link, or not a folder"):
            mirror.push(run, str(url))


@pytest.mark.timeout(30)
def test_a_pipe_in_the_run_is_not_mirrored(tmp_path):
    with opened(tmp_path / "one") as run:
        os.mkfifo(run.metrics)
        with pytest.raises(UserError, match=r"metrics\.jsonl: is not a regular file"):
            mirror.push(run, str(tmp_path / "mirror"))


def test_a_kill_while_a_file_is_mirrored_leaves_the_old_mirror(tmp_path, monkeypatch):
    """Every file is replaced as a whole, so a mirror in a folder can always be read."""
    url = str(tmp_path / "mirror")
    with opened(tmp_path / "one") as run:
        sealed(run, "a.jsonl", b"{}\n")
        mirror.push(run, url)
        sealed(run, "b.jsonl", b"{}\n" * 1000)

        replace = os.replace

        def killed(partial: Path, place: Path) -> None:
            if Path(place) == Path(url, manifest.NAME):
                os.truncate(partial, 10)
                raise KeyboardInterrupt
            replace(partial, place)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, "replace", killed)
            mirror.push(run, url)
        mirror.pull(url, tmp_path / "two")
        with contextlib.closing(opened(tmp_path / "two")) as again:
            assert [p.name for p in manifest.sealed_units(again, "search/000")] == ["a.jsonl"]
        mirror.push(run, url)
    with opened(tmp_path / "three", url) as again:
        assert len(manifest.sealed_units(again, "search/000")) == 2


def test_an_old_copy_of_a_run_does_not_replace_what_its_mirror_has(tmp_path, url, capsys):
    with opened(tmp_path / "one", url) as run:
        sealed(run, "a.jsonl", b"{}\n")
    shutil.copytree(tmp_path / "one", tmp_path / "old")
    with opened(tmp_path / "one", url) as run:
        sealed(run, "b.jsonl", b"{}\n")
    with pytest.raises(UserError, match="has gone on without"):
        mirror.push(tmp_path / "old", url)
    # Opened, it continues from the mirror, and keeps what it had.
    with opened(tmp_path / "old", url) as run:
        assert len(manifest.sealed_units(run, "search/000")) == 2
        manifest.verify(run)
        # What is made again may have fewer files than before.
        (run.path / "b.jsonl").write_bytes(b"damaged")
        manifest.redo(run, "search/000")
        mirror.push(run, url)
    assert "what was here is in" in capsys.readouterr().err
    assert (tmp_path / "old/set-aside/000/a.jsonl").read_bytes() == b"{}\n"
    assert manifest.parse((tmp_path / "old/set-aside/000/manifest.json").read_bytes())


def test_two_copies_of_a_run_do_not_write_one_mirror(tmp_path, url):
    """A machine that seemed gone comes back, after another one has gone on from the mirror."""
    with opened(tmp_path / "one", url) as run:
        sealed(run, "a.jsonl", b"{}\n")
    with opened(tmp_path / "two", url) as other:
        pass  # it may train for hours before it seals anything
    with pytest.raises(UserError, match="has gone on without"):
        mirror.push(tmp_path / "one", url)
    with opened(tmp_path / "one", url) as run:
        lineage = manifest.load(run)["lineage"]
        assert lineage[:2] == manifest.load(other)["lineage"] and len(lineage) == 3
    opened(tmp_path / "other", seed=1).close()
    with pytest.raises(UserError, match="holds another run"):
        mirror.push(tmp_path / "other", url)


def test_what_is_set_aside_is_whole_after_a_kill(tmp_path, monkeypatch):
    url = str(tmp_path / "mirror")
    with opened(tmp_path / "one", url) as run:
        sealed(run, "a.jsonl", b"{}\n")
    with opened(tmp_path / "two", url):
        pass
    move, moved = shutil.move, []

    def killed(old, new):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(new)
        return move(old, new)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "move", killed)
        opened(tmp_path / "one", url)
    with opened(tmp_path / "one", url) as run:
        manifest.verify(run)
        assert len(manifest.sealed_units(run, "search/000")) == 1
    kept = {path.name for path in (tmp_path / "one/set-aside").rglob("*") if path.is_file()}
    assert {"a.jsonl", "config.yaml", "manifest.json", "manifest.copy.json"} <= kept


def test_a_run_that_is_faster_than_its_copies_is_continued_from_them(tmp_path, monkeypatch):
    """Sealed again and again during a copy: the mirror has a manifest all the same."""
    url = str(tmp_path / "mirror")
    with opened(tmp_path / "one") as run:
        sealed(run, "0.jsonl", b"{}\n")
        put = mirror.Store.put

        def slow(store, source, name):
            put(store, source, name)
            number = len(manifest.sealed_units(run, "search/000"))
            if number < 5:
                sealed(run, f"{number}.jsonl", b"{}\n")
            elif number == 5:
                raise OSError("the machine is gone")

        monkeypatch.setattr(mirror.Store, "put", slow)
        with pytest.raises(UserError, match="the machine is gone"):
            mirror.push(run, url)
    monkeypatch.undo()
    with opened(tmp_path / "two", url) as again:
        manifest.verify(again)
        assert manifest.sealed_units(again, "search/000")
