"""A run directory: the paths of its files, and the rules for creating and opening one.

It has the paths that several stages share; a stage's own folders (`evals`, `ablations`, `dataset`)
are named where they are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from malt_jax.errors import UserError
from malt_jax.regular_files import read_bytes
from malt_jax.storage import config_file, lock, manifest, mirror
from malt_jax.storage.atomic import (
    clean_leftovers,
    explained,
    leftover_of,
    make_folder,
    remove,
    write_bytes,
)
from malt_jax.storage.config_file import Request, differences
from malt_jax.storage.provenance import git_commit, versions
from malt_jax.storage.schema import LOCK
from malt_jax.storage.uploader import Uploader
from malt_jax.storage.writers import is_writer, on_writer

__all__ = ["RunDir", "differences", "run_around"]
CHOOSE = "--output-dir"
SEEN_SECONDS = 90.0
"""Until all machines see what one has written to a shared folder; NFS needs up to 60 s."""
LIFE_SECONDS = 60.0


class RunDir:
    """One run on disk. As a context manager, it lets another process write when it is left."""

    def __init__(self, path: Path, held: lock.RunLock | None, created: Sequence[Path] = ()):
        """`created`: config.yaml and the folders, innermost first, that did not exist before."""
        self.path, self._lock, self._created = path, held, created
        self._shown = 0.0
        self.uploader: Uploader | None = None
        """Copies the run to its mirror, in the process that writes a run that has one."""
        self.results = path / "results.json"
        self.results_table = path / "results.md"
        self.report = path / "report.html"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "tensorboard"
        self.profile = path / "profile"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        config: dict[str, Any],
        command: str,
        *,
        free: Collection[str] = (),
        complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        facts: dict[str, Any] | None = None,
        mirror: str | None = None,
        mirror_seconds: float = 60.0,
        inside: RunDir | None = None,
    ) -> RunDir:
        """Creates the run, or opens it to continue it, as its only writer.

        `config` is plain data. It must equal the config that an existing run was made with, except
        for the dotted fields in `free` (and everything below them), which cannot change a result
        and keep their first value in config.yaml. `complete` adds defaults to a saved config
        (see `config_file`). `facts` (devices, model, revision) go into the first manifest. A run
        that exists only in the `mirror` is fetched; unfinished work is copied there every
        `mirror_seconds`. A folder in another run is refused, because
        that run would take it for damage, unless it is `inside` that run on purpose.

        Raises `UserError` for a folder that is not a run, a run that another process writes, and a
        config that differs.
        """
        path = Path(os.path.abspath(path))
        request = Request(config, free, complete or Request.complete)
        opened: list[RunDir] = []
        # Process 0 creates or opens the run; the others read what it made and hold no lock.
        on_writer(
            lambda: opened.append(cls._open(path, request, command, facts, mirror, inside)),
            patient=mirror is not None,
        )
        if not opened:
            # Each process has looked for the run before, and a file server's clients remember for a
            # while that there was none.
            until = time.monotonic() + SEEN_SECONDS
            while not _is_run(path) and time.monotonic() < until:
                time.sleep(0.5)
            return cls.existing(path)
        if mirror:
            opened[0].uploader = Uploader(path, mirror, mirror_seconds)
        return opened[0]

    @classmethod
    def _open(
        cls,
        path: Path,
        request: Request,
        command: str,
        facts: dict[str, Any] | None,
        url: str | None,
        inside: RunDir | None,
    ) -> RunDir:
        config = path / config_file.NAME
        with explained(path):
            # 1. Refuse a foreign folder before a lock file is put into it.
            _refuse_foreign(path, request, url, inside)
            if url:
                mirror.refuse_overlap(url, path)
            # 2. Note what does not exist yet, because `withdraw` may remove only that.
            created = [] if config.exists() else [config]
            created += make_folder(path)
            # 3. Take the lock. What was checked without it may have changed, so it is checked
            # again.
            run = cls(path, lock.RunLock(path, command), created)
            try:
                _refuse_foreign(path, request, url, inside)  # again, now that nobody else writes
                # 4. Fetch the run from its mirror, if it exists only there.
                if url and _is_run(path) and mirror.has_gone_on(url, path):
                    # This machine was gone for a while, and another one has gone on from the store.
                    write_bytes(path / mirror.BEGUN, b"")  # makes the folder one to fetch into
                    kept = manifest.set_all_aside(path, keep=(LOCK, mirror.BEGUN))
                    print(
                        f"mirror: {url} has gone on without {path}, which continues from there; "
                        f"what was here is in {kept}",
                        file=sys.stderr,
                    )
                if url and not _is_run(path):
                    _fetch(url, path, request)
                    if _is_run(path):
                        manifest.fork(path)
                # 5. Remove what a killed process left: the marker of a fetch, and temporary files.
                remove(path / mirror.BEGUN)
                clean_leftovers(path)
                # 6. Continue the run, or create it.
                if _is_run(path):
                    request.refuse_other(run.config, f"{path}:", CHOOSE)
                else:
                    _create(path, request, {"command": command, **(facts or {})})
            except BaseException as error:
                # Refused input leaves no empty run behind. After any other error the folder stays
                # as it is.
                if isinstance(error, UserError) and not _is_run(path):
                    run.withdraw()
                run.close()
                raise
        return run

    @classmethod
    def check(
        cls,
        path: str | os.PathLike,
        config: dict[str, Any],
        *,
        free: Collection[str] = (),
        complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        inside: RunDir | None = None,
    ) -> None:
        """Raises what `open` would for this folder and config, and writes nothing."""
        path = Path(os.path.abspath(path))
        request = Request(config, free, complete or Request.complete)
        with explained(path):
            _refuse_foreign(path, request, inside=inside)
            if _is_run(path):
                request.refuse_other(cls(path, None).config, f"{path}:", CHOOSE)

    @classmethod
    def existing(cls, path: str | os.PathLike) -> RunDir:
        """A finished or running run, to be read; takes no lock and writes nothing."""
        path = Path(os.path.abspath(path))
        if not _is_run(path):
            raise UserError(f"{path}: not a run directory: it has no {manifest.NAME}.")
        manifest.load(path)
        return cls(path, None)

    def close(self) -> None:
        """Waits until the mirror has everything, then lets other processes write the run."""
        try:
            if self.uploader:
                self.uploader.close()
        finally:
            if self._lock:
                self._lock.release()

    def show_life(self) -> None:
        """Touches the lock file now and then: hours of sampling may write nothing else.

        By that a supervisor tells a long block from a process that hangs.
        """
        if self._lock and time.monotonic() - self._shown > LIFE_SECONDS:
            self._shown = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self.path / LOCK)

    def copy_sealed(self) -> None:
        """Has what was sealed copied to the mirror, if there is one; raises its last UserError."""
        if self.uploader:
            self.uploader.sealed()

    def withdraw(self) -> None:
        """Removes a run that holds nothing yet, so that refused input leaves nothing behind.

        Folders are removed only if they were created for the run.
        """
        if not is_writer():
            return
        # In this order, because a config.yaml alone is a run whose creation was interrupted.
        ours = (manifest.TWIN, manifest.NAME, LOCK)
        # Any other file shows that a stage has begun, and then nothing is removed.
        if {entry.name for entry in self.path.iterdir()} <= {*ours, config_file.NAME}:
            for name in ours:
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another program has begun to use a folder
                for path in self._created:
                    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: type | None, ending: object, _: object) -> None:
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            if str(error) != str(ending):  # the same fault of the mirror is said once
                print(error, file=sys.stderr)  # beside the error that ends the command

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config the run was made with."""
        sha256 = manifest.load(self.path)["config_sha256"]
        file = self.path / config_file.NAME
        raw = read_bytes(file) if file.exists() else b""
        return config_file.parse(raw, sha256, str(file), CHOOSE)

    def trees(self, round: int) -> Path:
        """Folder of append-only shards, one record per question."""
        return self.path / "rounds" / f"{round:03d}" / "trees"

    def data(self, round: int, role: str) -> Path:
        """Folder of `sft.jsonl` and `dpo.jsonl`."""
        return self.path / "rounds" / f"{round:03d}" / "data" / _component(role)

    def checkpoint(self, round: int, role: str) -> Path:
        return self.path / "checkpoints" / f"{round:03d}" / _component(role)

    def eval(self, system: str) -> Path:
        """Shard of one record per question and draw."""
        return self.path / "eval" / f"{_component(system)}.jsonl"

    def export(self, role: str) -> Path:
        return self.path / "export" / _component(role)


def run_around(path: str | os.PathLike) -> Path | None:
    """The run directory in which a path lies, or None."""
    folders = Path(os.path.realpath(path)).parents
    # Recognised by the manifest's copy, because many other programs have a manifest.json.
    return next((folder for folder in folders if os.path.exists(folder / manifest.TWIN)), None)


def _is_run(path: Path) -> bool:
    return os.path.exists(path / manifest.NAME)  # unlike Path.exists, False for impossible names


def _create(path: Path, request: Request, facts: dict[str, Any]) -> None:
    # The manifest is written last: it makes the folder a run, and it holds the config's hash.
    text = config_file.to_yaml(request.config)
    write_bytes(path / config_file.NAME, text)
    digest = hashlib.sha256(text).hexdigest()
    made_with = {"git_commit": git_commit(), "versions": versions(), "config_sha256": digest}
    manifest.create(path, {**facts, **made_with})


def _fetch(url: str, path: Path, request: Request) -> None:
    """Copies the run from its mirror, if one is there and was made with the requested config."""

    def accept(raw: bytes, sha256: str) -> None:
        place = f"mirror: the {config_file.NAME} of {url}"
        saved = config_file.parse(raw, sha256, place, "mirror")
        request.refuse_other(saved, f"mirror: {url} holds a run", "mirror")

    mirror.pull(url, path, accept)


def _refuse_foreign(
    path: Path, request: Request, url: str | None = None, inside: RunDir | None = None
) -> None:
    """Refuses a path that is neither free, nor a run, nor a run whose creation was interrupted."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: no file system can hold this name; choose another --output-dir."
        ) from None
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose a folder as --output-dir.")
    if _is_run(path):
        manifest.load(path)  # before a lock is put beside what may be another program's manifest
        return
    around = run_around(path)
    if around and not (inside and inside.path.samefile(around)):
        raise UserError(
            f"{path}: lies in the run directory {around}, which would take it for damage; choose "
            "an --output-dir outside of it."
        )
    if not around and (store := mirror.mirror_around(path)):
        raise UserError(
            f"{path}: lies in {store}, the mirror of a run, which writes there; choose an "
            "--output-dir outside of it."
        )
    # A fetch that was killed may have left any file, and the next fetch begins from the start.
    if url and (path / mirror.BEGUN).exists():
        return
    if (path / manifest.TWIN).exists():
        manifest.load(path)  # raises: the manifest is missing, and where its copy is
    for entry in path.iterdir() if path.exists() else ():
        if not _is_of_creation(entry, request):
            raise UserError(
                f"{path}: not a run directory (no {manifest.NAME}) and not empty: it holds "
                f"{entry.name!r}. Choose another --output-dir."
            )


def _is_of_creation(entry: Path, request: Request) -> bool:
    """Whether the creation of this run writes such a file before the manifest."""
    if entry.name == LOCK:
        return lock.is_lock(entry)
    if entry.name == config_file.NAME:
        return read_bytes(entry) == config_file.to_yaml(request.config)
    names = (config_file.NAME, manifest.NAME)
    return leftover_of(entry.name) in names and not entry.is_dir()


def _component(name: str) -> str:
    """A role's or system's name as one safe component of a path."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,99}", name):
        raise UserError(
            f"{name!r}: cannot name a folder; allowed are letters, digits and @ . _ + -, at most "
            "100, beginning with a letter or digit."
        )
    return name
