"""The mirror also holds work that is not sealed yet, and only where all of it is intact."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import jax.numpy as jnp
import numpy as np
import pytest

from faulty_server import KINDS, Faults, store
from malt_jax.errors import Unavailable, UserError
from malt_jax.storage import manifest, mirror, selfsealed, unfinished, uploader
from malt_jax.storage import store as stores
from malt_jax.storage.atomic import write_bytes
from malt_jax.storage.checkpoints import CheckpointFolder
from malt_jax.storage.rundir import RunDir

CONFIG = {"seed": 3}
TREE = {"w": jnp.arange(600.0)}
STEP = Path("checkpoints/000/generator/sft")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Files of a few pieces, and pauses of a moment."""
    monkeypatch.setattr(unfinished, "PIECE", 1000)
    monkeypatch.setattr(stores, "FIRST_PAUSE", 0.01)


def begun(path: Path, url: str, seconds: float = 3600.0) -> RunDir:
    """A run whose search is sealed and which has not trained yet."""
    run = RunDir.open(path, CONFIG, "malt test", mirror=url, mirror_seconds=seconds)
    if not manifest.stage_done(run, "search/000"):
        write_bytes(run.path / "rounds/000/trees/a.jsonl", b"{}\n")
        manifest.seal(run, "search/000", [run.path / "rounds/000/trees/a.jsonl"])
    return run


def in_training(path: Path, url: str, *, checkpoint: bool = True) -> None:
    """A run that was cut in a training, with a growing file of an evaluation."""
    with begun(path, url) as run:
        if checkpoint:
            CheckpointFolder(run.path / STEP).save("step-00000002", TREE, {"step": 2})
        write_bytes(run.path / "eval/malt.jsonl", b'{"question_id": "a"}\n' * 100 + b'{"torn')
        write_bytes(run.metrics, b'{"loss": 1}\n')


def test_a_bare_machine_continues_from_checkpoints_and_growing_files(tmp_path):
    url = str(tmp_path / "mirror")
    in_training(tmp_path / "one", url)
    shutil.rmtree(tmp_path / "one")
    with begun(tmp_path / "two", url) as run:
        saver = CheckpointFolder(run.path / STEP)
        assert saver.names() == ["step-00000002"] and saver.facts("step-00000002") == {"step": 2}
        np.testing.assert_array_equal(saver.restore("step-00000002", TREE)["w"], TREE["w"])
        # The line that was being written is not taken.
        assert (run.path / "eval/malt.jsonl").read_bytes() == b'{"question_id": "a"}\n' * 100
        assert run.metrics.read_bytes() == b'{"loss": 1}\n'


def test_only_what_has_grown_is_copied_and_old_pieces_are_removed(tmp_path, monkeypatch):
    url = str(tmp_path / "mirror")
    with begun(tmp_path / "one", url) as run:
        write_bytes(run.path / "eval/malt.jsonl", b'{"question_id": "a"}\n' * 100)
    pieces = {path.name for path in Path(url, "unfinished").iterdir()}
    with begun(tmp_path / "one", url) as run:
        grown = b'{"question_id": "a"}\n' * 100 + b"{}\n" * 10
        write_bytes(run.path / "eval/malt.jsonl", grown)
    now = {path.name for path in Path(url, "unfinished").iterdir()}
    assert len(now) == len(pieces) == 3
    assert len(now & pieces) == 2  # the two full ones
    # Sealed work is in its own place, and its pieces are gone.
    with begun(tmp_path / "one", url) as run:
        manifest.seal(run, "eval", [run.path / "eval/malt.jsonl"])
        run.uploader.sealed()
    assert not list(Path(url, "unfinished").iterdir())
    assert Path(url, "eval/malt.jsonl").read_bytes() == grown


def test_pieces_whose_removal_failed_are_copied_again(tmp_path, monkeypatch):
    url = str(tmp_path / "mirror")
    in_training(tmp_path / "one", url)
    run, there = tmp_path / "one", manifest.load(tmp_path / "one")
    kept = (run / "eval/malt.jsonl").read_bytes()
    copies = unfinished.Unfinished(run, stores.Store(url))
    assert copies.push(there)
    write_bytes(run / "eval/malt.jsonl", b"{}\n")
    remove, calls = stores.Store.remove, []

    def removes_two(store, name):
        calls.append(name)
        if len(calls) > 2:
            raise OSError("the store does not answer")
        remove(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(stores.Store, "remove", removes_two)
        with pytest.raises(OSError):
            copies.push(there)
    write_bytes(run / "eval/malt.jsonl", kept)  # the same content as before
    assert copies.push(there)
    (tmp_path / "two").mkdir()
    assert "eval/malt.jsonl" in unfinished.pull(stores.Store(url), tmp_path / "two", there)


def test_pieces_that_a_killed_process_left_are_removed_by_the_next(tmp_path):
    url = str(tmp_path / "mirror")
    in_training(tmp_path / "one", url, checkpoint=False)
    pieces = {path.name for path in Path(url, "unfinished").iterdir()}
    for name in ("f" * 64, "somebody's"):
        Path(url, "unfinished", name).write_text("not named by any list")
    with begun(tmp_path / "one", url):
        pass
    assert {path.name for path in Path(url, "unfinished").iterdir()} == {*pieces, "somebody's"}


def test_checkpoints_that_are_not_sealed_or_vanish_are_not_listed(tmp_path, monkeypatch, capsys):
    url = tmp_path / "mirror"
    with begun(tmp_path / "one", str(url)) as run:
        saver = CheckpointFolder(run.path / STEP)
        saver.save("step-00000002", TREE, {})
        (run.path / STEP / "step-00000002/seal.json").unlink()
    assert not json.loads((url / unfinished.LIST).read_bytes())["files"]
    saver.save("step-00000004", TREE, {})
    work = unfinished.Unfinished(run.path, stores.Store(str(url)))
    listed = unfinished.work_of

    def removed_meanwhile(*arguments):
        yield from listed(*arguments)
        saver.remove("step-")

    monkeypatch.setattr(unfinished, "work_of", removed_meanwhile)
    assert not work.push(manifest.load(run))
    assert not json.loads((url / unfinished.LIST).read_bytes())["files"]
    monkeypatch.setattr(unfinished.Unfinished, "push", lambda *_: False)
    begun(tmp_path / "one", str(url)).close()
    assert "checkpoints are replaced before" in capsys.readouterr().err


def test_a_list_of_another_manifest_is_passed_over(tmp_path):
    url = str(tmp_path / "mirror")
    in_training(tmp_path / "one", url)
    manifest.amend(tmp_path / "one", note="changed")
    mirror.push(tmp_path / "one", url)
    with begun(tmp_path / "two", url) as run:
        assert not (run.path / "checkpoints").exists()


def listed(url: Path, change) -> None:
    data = selfsealed.decode((url / unfinished.LIST).read_bytes())
    change(data["files"])
    (url / unfinished.LIST).write_bytes(selfsealed.encode(data))


PIECE = ["0" * 64, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.update({"../escaped": [PIECE]}),
        lambda files: files.update({"/escaped": [PIECE]}),
        lambda files: files.update({"config.yaml": [PIECE]}),
        lambda files: files.update({"eval/b": [PIECE]}),
        lambda files: files.update({"eval/b": [["../../x", 1]]}),
        lambda files: files.update({"eval/b": [["0" * 64, 1 << 60]]}),
        lambda files: files.update({"eval/b": [["0" * 64]]}),
        lambda files: files.update({"eval/b": 5}),
    ],
)
def test_a_malformed_list_is_not_used(tmp_path, capsys, change):
    url = tmp_path / "mirror"
    in_training(tmp_path / "one", str(url))
    listed(url, change)
    with begun(tmp_path / "two", str(url)) as run:
        assert not (run.path / "eval").exists() or not list((run.path / "eval").iterdir())
        assert not list((run.path / "checkpoints").rglob("*.json"))
    assert "is not used" in capsys.readouterr().err
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("damage", [lambda piece: piece.write_bytes(b"x"), Path.unlink])
def test_a_partial_piece_is_never_accepted(tmp_path, capsys, damage):
    url = tmp_path / "mirror"
    in_training(tmp_path / "one", str(url))
    curves = (url / "metrics.jsonl").read_bytes()
    assert curves == b'{"loss": 1}\n'
    damage(next(iter(sorted((url / "unfinished").iterdir()))))
    with begun(tmp_path / "two", str(url)) as run:
        manifest.verify(run)
        assert not [path for path in run.path.glob("checkpoints/**/*") if path.is_file()]
        assert run.metrics.read_bytes() == curves  # the log that lies beside the pieces is kept
        assert not list(run.path.rglob(".tmp-*"))
    assert "missing or damaged" in capsys.readouterr().err


def test_the_run_goes_on_while_the_store_does_not_answer(tmp_path, monkeypatch, capsys):
    url = str(tmp_path / "mirror")
    with begun(tmp_path / "one", url, seconds=0.01) as run, monkeypatch.context() as outage:
        push = Mock(side_effect=Unavailable("no answer"))
        outage.setattr(mirror, "push", push)
        manifest.amend(run, note="changed")
        while push.call_count < 3:
            run.uploader.sealed()
            time.sleep(0.01)
    assert capsys.readouterr().err.splitlines() == [
        f"mirror: {url} could not be written: no answer; the run goes on, and the copy is tried "
        "again every 0.01 s",
        f"mirror: {url} is complete again",
    ]
    assert mirror.look(url)["note"] == "changed"
    monkeypatch.setattr(mirror, "push", Mock(side_effect=Unavailable("no answer")))
    manifest.amend(run, note="changed again")
    with pytest.raises(Unavailable, match="no answer"), begun(tmp_path / "one", url):
        pass


def test_a_mirror_of_another_run_ends_this_one_when_it_next_seals(tmp_path, monkeypatch):
    url = str(tmp_path / "mirror")
    run = begun(tmp_path / "one", url)
    monkeypatch.setattr(mirror, "push", Mock(side_effect=UserError("holds another run")))
    with pytest.raises(UserError, match="holds another run"):
        while True:
            run.uploader.sealed()
            time.sleep(0.01)
    monkeypatch.undo()
    run.close()


def test_what_is_written_during_a_copy_is_copied_before_closing(tmp_path, monkeypatch):
    """The last copy begins after `close` was called, also when another one was at work then."""
    url, at_work, go_on = str(tmp_path / "mirror"), threading.Event(), threading.Event()
    run = begun(tmp_path / "one", url)
    push = mirror.push

    def slow(*arguments):
        push(*arguments)
        at_work.set()
        assert go_on.wait(10)

    monkeypatch.setattr(mirror, "push", slow)
    monkeypatch.setattr(uploader, "TRIES", 1)
    run.uploader.sealed()
    assert at_work.wait(10)
    manifest.amend(run, note="changed")
    threading.Timer(0.1, go_on.set).start()
    run.close()
    assert mirror.look(url)["note"] == "changed"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_faulty_network_changes_nothing(tmp_path, monkeypatch, kind, capsys):
    """Every kind of fault, against a real server: tried again, and what arrives is whole."""
    import fsspec

    faults = Faults(KINDS, share=0.25)
    with store(kind, faults) as (url, conf):
        monkeypatch.setitem(fsspec.config.conf, kind, conf[kind])
        # The clients try again as well, GCS' with pauses of up to 16 s; here it is to be ours.
        client = fsspec.get_filesystem_class(kind)
        monkeypatch.setattr(client, "retries", 1)
        if kind == "gs":  # its decorator has read the number before
            retry = pytest.importorskip("gcsfs.retry").retry_request(retries=1)
            monkeypatch.setattr(client, "_request", retry(client._request.__wrapped__))
        in_training(tmp_path / "one", url, checkpoint=False)
        with begun(tmp_path / "two", url) as run:
            manifest.verify(run)
            assert (run.path / "eval/malt.jsonl").read_bytes() == b'{"question_id": "a"}\n' * 100
        assert len(faults.injected) >= 3, faults.injected
        # 2. A fault that does not pass ends the command with one sentence; the run is intact.
        faults.kinds, faults.share = ("error",), 1.0
        monkeypatch.setattr(stores, "PATIENCE", 0.1)
        with pytest.raises(UserError, match=f"mirror: {kind}://bucket/run could not be written"):  # noqa: SIM117
            with begun(tmp_path / "two", url) as run:
                manifest.amend(run, note="changed")
        manifest.verify(tmp_path / "two")
        faults.share = 0.0
        with begun(tmp_path / "two", url):
            pass
        with begun(tmp_path / "three", url) as run:
            assert manifest.load(run)["note"] == "changed"


def test_the_work_of_a_run_that_has_sealed_nothing_is_copied_too(tmp_path):
    """Baselines that are measured before any training are sealed after the last one."""
    url = str(tmp_path / "mirror")
    with RunDir.open(tmp_path / "one", CONFIG, "malt test", mirror=url) as run:
        write_bytes(run.path / "eval/sa.jsonl", b'{"question_id": "a"}\n')
    with RunDir.open(tmp_path / "two", CONFIG, "malt test", mirror=url) as again:
        assert (again.path / "eval/sa.jsonl").read_bytes() == b'{"question_id": "a"}\n'
