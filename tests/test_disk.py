"""The whole loop on a disk that fills up or becomes read-only: sealed files stay intact.

The tests mount a file system in memory and are skipped where that is not allowed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import cli_run
from malt_jax import cli
from malt_jax.storage import manifest

START_KB, STEP = 48, 1.6


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A folder on a file system of its own, which `remount` changes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={START_KB}k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"may not mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def contents(run: Path) -> dict[str, bytes]:
    kept = ("rounds", "eval", "export")
    files = [path for name in kept for path in (run / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_a_run_on_a_disk_that_fills_up_repeatedly_ends_with_the_same_bytes(
    disk, tmp_path, capsys, monkeypatch
):
    # The check before a run must not see that the disk is too small: others may fill it later.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    flags, run = cli_run.flags()[:-1], disk / "run"
    assert cli.main(["run", *flags, str(tmp_path / "undisturbed")]) == 0
    capsys.readouterr()
    size, refusals = START_KB, []
    while (status := cli.main(["run", *flags, str(run)])) == 2:
        message = capsys.readouterr().err
        assert message.startswith("malt: ") and message.count("\n") == 1, message
        assert "No space left on device" in message and str(run) in message
        if (run / manifest.NAME).exists():
            manifest.verify(run)
        stages = manifest.load(run)["stages"] if (run / manifest.NAME).exists() else {}
        refusals.append([name for name, stage in stages.items() if stage["done"]])
        size = int(size * STEP)
        remount(disk, f"size={size}k")
    assert status == 0, capsys.readouterr().err
    assert len({len(done) for done in refusals}) >= 4, refusals
    assert contents(run) == contents(tmp_path / "undisturbed")


def test_a_read_only_run_is_refused_unchanged_and_continues_once_writable(disk, capsys):
    flags, run = cli_run.flags()[:-1], disk / "run"
    remount(disk, "size=64m")
    assert cli.main(["search", *flags, str(run)]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    remount(disk, "ro")
    capsys.readouterr()
    for folder in (run, disk / "new"):
        assert cli.main(["label", *flags, str(folder)]) == 2
        message = capsys.readouterr().err
        assert "Read-only file system" in message and message.count("\n") == 1, message
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    remount(disk, "rw")
    assert cli.main(["label", *flags, str(run)]) == 0
