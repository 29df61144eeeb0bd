"""Files and folders that appear whole or not at all.

Everything is built under a temporary name in the same folder, flushed to the disk (`fsync`),
renamed into place, and the folder that now names it is flushed too. A writer that is killed leaves
the old state and a `.tmp-*` leftover, which `clean_leftovers` removes when the run is next opened.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.storage.writers import writes

_MENDS = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "make that file system writable",
    errno.EACCES: "allow this user to write there",
    errno.EPERM: "allow this user to write there",
    errno.EIO: "check that disk",
    errno.ENOTDIR: "remove the file that stands where a folder is needed",
    errno.EEXIST: "remove the file that stands where a folder is needed",
    errno.EISDIR: "remove the folder that stands where a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what a disk can refuse while `path` is written into a `UserError`."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        if os.strerror(errno.ENOSPC) in str(error):  # safetensors and tensorstore raise their own
            code = errno.ENOSPC
        if isinstance(error, UserError) or code not in _MENDS:
            raise
        raise UserError(
            f"{path}: could not be written: {os.strerror(code)}. What stood there "
            f"before is whole; {_MENDS[code]} or choose another folder, then run the command again."
        ) from error


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replaces `path` by a file holding `data`; at every moment it is the old or the new file."""
    if not writes():
        return
    path = Path(path)
    with explained(path):
        make_folder(path.parent)
        building = _temporary(path)
        try:
            with open(building, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(building, path)
            sync(path.parent)
        except BaseException:
            building.unlink(missing_ok=True)
            raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of UTF-8 text. Lone surrogates, which UTF-8 cannot hold, become `\\udXXX`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike, data: object) -> None:
    """`write_text` of indented JSON; raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_directory(path: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `path`; when the block ends well it becomes `path`.

    An exception in the block removes it and leaves `path` as it was. A `path` that exists and is
    not an empty folder is refused with `UserError`, unless `replace` is set.
    """
    path = Path(path)
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not replace:
        raise UserError(f"{path}: already exists; remove it or choose another folder.")
    old = path.with_name(f".old-{path.name}")
    with explained(path):
        make_folder(path.parent)
        building = _temporary(path)
        building.mkdir()
        try:
            yield building
            sync_tree(building)
            if taken:  # a folder cannot be renamed over a full one: see clean_leftovers
                _remove(old)
                os.rename(path, old)
            os.rename(building, path)
            sync(path.parent)
        except BaseException:
            _remove(building)
            if taken and not path.exists():
                os.rename(old, path)
            raise
    if taken:
        _remove(old)


def clean_leftovers(folder: str | os.PathLike) -> None:
    """Removes what killed writers left beneath `folder`; its caller must be the only writer.

    A folder caught in the middle of its replacement (`.old-NAME` without `NAME`) is put back.
    """
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            if name.startswith(".old-") and not (target := Path(parent, name[5:])).exists():
                os.rename(path, target)
            elif name.startswith((".tmp-", ".old-")):
                _remove(path)
        folders[:] = [name for name in folders if not name.startswith((".tmp-", ".old-"))]


def discard(path: Path) -> None:
    """Takes a file or folder away at once, whole, however long the deleting itself takes."""
    if path.exists():
        leaving = _temporary(path)
        os.rename(path, leaving)
        _remove(leaving)


def make_folder(path: Path) -> None:
    """Creates `path` and its parents so that a power cut cannot take them away again."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Flushes a file, or every file and folder at and beneath a folder, to the disk."""
    if path.is_file():
        sync(path)
    for parent, _, files in os.walk(path):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))


def _temporary(path: Path) -> Path:
    # A name of its own, so that two writers of one path cannot rename each other's half file.
    return path.with_name(f".tmp-{path.name[:200]}-{secrets.token_hex(4)}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
