"""The work of a run that is not sealed yet, kept in its mirror: checkpoints and growing files.

    unfinished.json       {"manifest": seal, "files": {path: [[SHA-256, bytes], ...]}, "seal": ...}
    unfinished/SHA-256    a piece of a file, named after its content

A file is cut into pieces, so what has grown is copied and not what was there before. The list is
written after the pieces it names, and old pieces are deleted after it, so at every moment the list
names pieces that are complete. It belongs to one state of the manifest: with any other one the
store's list is not used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from malt_jax.hashing import files_beneath
from malt_jax.regular_files import open_regular
from malt_jax.storage import manifest, selfsealed
from malt_jax.storage.atomic import leftover_of, make_folder, temporary
from malt_jax.storage.schema import is_artefact
from malt_jax.storage.store import Store

LIST, FOLDER = "unfinished.json", "unfinished"
PIECE = 32 << 20
"""Bytes of a piece, which is held in memory while it is copied."""
WORK = ("rounds", "checkpoints", "eval", "cost")
"""Folders of a run in which a stage that was cut short finds its work again."""
METRICS = "metrics.jsonl"
CHECKPOINT_DEPTH = 5
"""checkpoints/ROUND/POLICY/PHASE/NAME: the folder that is a checkpoint."""

Pieces = list[tuple[str, int]]
Version = tuple[int, int, int]
"""Size, time of change and inode of a file: another one has another of these."""


class Vanished(Exception):
    """A file was removed while the work was being copied."""


class Unfinished:
    """Copies the unfinished work of a run to its mirror, as often as it is asked to."""

    def __init__(self, run: Path, store: Store):
        self._run, self._store = run, store
        self._known: dict[str, tuple[Version, Pieces]] = {}
        self._last: bytes | None = None
        self._there = set(_pieces_of(store.read(LIST)))
        # A process that was killed during a copy may have left pieces that no list names.
        for name in filter(_is_digest, store.names(FOLDER)):
            if name not in self._there:
                store.remove(f"{FOLDER}/{name}")

    def push(self, data: dict[str, Any]) -> bool:
        """Copies what has changed; `data` is the manifest that the store holds.

        Returns False, and leaves the list in the store as it is, if a stage has removed or replaced
        a checkpoint meanwhile: a part of one must not be listed.
        """
        sealed = set(manifest.units_of(data))
        try:
            files = {path: self._copy(path) for path in work_of(self._run, sealed)}
            changed = [path for path in files if self._version(path) != self._known[path][0]]
        except Vanished:
            return False
        if any(path.startswith("checkpoints/") for path in changed):
            return False
        self._known = {path: self._known[path] for path in files}
        encoded = selfsealed.encode({"manifest": data[selfsealed.KEY], "files": files})
        if encoded == self._last:
            return True
        self._store.put_bytes(encoded, LIST)
        self._last = encoded
        named = {digest for pieces in files.values() for digest, _ in pieces}
        for digest in self._there - named:
            # Forgotten first: a removal that fails may have been done all the same.
            self._there.discard(digest)
            self._store.remove(f"{FOLDER}/{digest}")
        return True

    def _copy(self, path: str) -> Pieces:
        """Copies the pieces of a file that the store lacks, and returns all of its pieces."""
        version = self._version(path)
        if path in self._known and self._known[path][0] == version:
            return self._known[path][1]
        pieces: Pieces = []
        try:
            handle = open_regular(self._run / path, os.O_RDONLY)
        except FileNotFoundError:
            raise Vanished from None
        with open(handle, "rb") as file:
            for data in _cut(file, version[0], whole_lines=path.endswith(".jsonl")):
                digest = hashlib.sha256(data).hexdigest()
                if digest not in self._there:
                    self._store.put_bytes(data, f"{FOLDER}/{digest}")
                    self._there.add(digest)
                pieces.append((digest, len(data)))
        self._known[path] = version, pieces
        return pieces

    def _version(self, path: str) -> Version:
        try:
            status = (self._run / path).stat()
        except FileNotFoundError:
            raise Vanished from None
        return status.st_size, status.st_mtime_ns, status.st_ino


def work_of(run: Path, sealed: set[str]) -> Iterator[str]:
    """The files that hold unsealed work, as paths in the run."""
    if (run / METRICS).exists():
        yield METRICS
    for file in (file for name in WORK for file in files_beneath(run / name)):
        path = file.relative_to(run).as_posix()
        parts = path.split("/")
        if any(leftover_of(part) for part in parts) or manifest.within(path, sealed):
            continue
        # A checkpoint without its seal is being written.
        folder = run.joinpath(*parts[:CHECKPOINT_DEPTH])
        if parts[0] == "checkpoints" and folder != file and not (folder / "seal.json").exists():
            continue
        yield path


def pull(store: Store, run: Path, data: dict[str, Any]) -> list[str]:
    """Copies the unfinished work into a run that is being fetched; returns the paths.

    `data` is the manifest of that run. Raises ValueError, with nothing written, unless every piece
    is there with its hash; a list that belongs to another manifest is passed over.
    """
    raw = store.read(LIST)
    if raw is None:
        return []
    listed = parse(raw)
    if listed["manifest"] != data[selfsealed.KEY]:
        return []
    sealed = set(manifest.units_of(data))
    files = {
        path: pieces
        for path, pieces in listed["files"].items()
        if not manifest.within(path, sealed)
    }
    # The files keep temporary names until all are whole: a sealed log is in the place of one.
    building = {path: temporary(run / path) for path in files}
    try:
        for path, pieces in files.items():
            make_folder((run / path).parent)
            with open(building[path], "wb") as file:
                for digest, size in pieces:
                    piece = store.read(f"{FOLDER}/{digest}") or b""
                    if len(piece) != size or hashlib.sha256(piece).hexdigest() != digest:
                        raise ValueError(f"a piece of {path} is missing or damaged")
                    file.write(piece)
        for path, partial in building.items():
            os.replace(partial, run / path)
    finally:
        for partial in building.values():
            partial.unlink(missing_ok=True)
    return list(files)


def parse(raw: bytes) -> dict[str, Any]:
    """The list in these bytes; raises ValueError for a damaged or malformed one."""
    data = selfsealed.decode(raw)
    files = data.get("files")
    if not isinstance(data.get("manifest"), str) or not isinstance(files, dict):
        raise ValueError("the list of files is malformed")
    for path, pieces in files.items():
        if not (is_artefact(path) and path.split("/")[0] in (*WORK, METRICS)):
            raise ValueError(f"its path {path!r} is not one of unfinished work")
        if not (isinstance(pieces, list) and all(map(_is_piece, pieces))):
            raise ValueError(f"the pieces of {path} are malformed")
    return data


def _is_piece(piece: object) -> bool:
    """Whether it is a hash, which becomes a part of a name, and a number of bytes."""
    if not (isinstance(piece, list) and len(piece) == 2):
        return False
    digest, size = piece
    return _is_digest(digest) and type(size) is int and 0 < size <= PIECE


def _is_digest(name: object) -> bool:
    return isinstance(name, str) and len(name) == 64 and set(name) <= {*"0123456789abcdef"}


def _pieces_of(raw: bytes | None) -> Iterator[str]:
    """The pieces that a list names; none if there is no list that can be read."""
    try:
        listed = parse(raw) if raw else {"files": {}}
    except ValueError:
        return
    for pieces in listed["files"].values():
        yield from (digest for digest, _ in pieces)


def _cut(file: Any, size: int, whole_lines: bool) -> Iterator[bytes]:
    """The first `size` bytes of a file, in pieces; with `whole_lines` up to the last line's end."""
    while size > 0 and (data := file.read(min(PIECE, size))):
        size -= len(data)
        if whole_lines and size == 0:
            data = data[: data.rfind(b"\n") + 1]  # a line that is being written is not whole
        if data:
            yield data
