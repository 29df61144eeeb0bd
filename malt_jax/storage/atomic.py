"""Atomic file operations: files are replaced as a whole, and failed appends are undone.

New content is built under a temporary name in the same folder, flushed to the disk (`fsync`) and
renamed into place; then the folder that lists it is flushed too. A writer that is killed leaves the
old content and a temporary file, which `clean_leftovers` removes when the run is opened again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from malt_jax.errors import Unavailable, UserError
from malt_jax.regular_files import open_regular
from malt_jax.storage.schema import LOCK
from malt_jax.storage.writers import is_writer

_LEFTOVER = re.compile(r"\.(tmp|old)-malt-[0-9a-f]{8}-(.+)", re.DOTALL)
"""Temporary names that only this package makes. Other hidden files belong to somebody else."""
_REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "make that file system writable",
    errno.EACCES: "allow this user to write there",
    errno.EPERM: "allow this user to write there",
    errno.EIO: "check that disk",
    errno.ENOTDIR: "remove the file that is where a folder is needed",
    errno.EEXIST: "remove the file that is where a folder is needed",
    errno.EISDIR: "remove the folder that is where a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ESTALE: "mount that file system again",
}
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}
"""How file systems say that a folder cannot be flushed: network shares, or no right to read it."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns file system errors while `path` is written into a `UserError` with a remedy."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        # safetensors and tensorstore wrap the system's error in one of their own.
        if os.strerror(errno.ENOSPC) in str(error):
            code = errno.ENOSPC
        if isinstance(error, UserError) or code not in _REMEDIES:
            raise
        # A disk or mount that fails may be whole again on the machine that tries next.
        kind = Unavailable if code in (errno.EIO, errno.ESTALE) else UserError
        raise kind(
            f"{path}: could not be written: {os.strerror(code)}. The previous content is "
            f"unchanged; {_REMEDIES[code]} or choose another folder, then run the command again."
        ) from error


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replaces a file atomically: readers see either the old content or all of `data`."""
    if not is_writer():
        return
    path = Path(path)
    with explained(path):
        make_folder(path.parent)
        # 1. Build beside the target, because a rename is atomic only within one file system.
        building = temporary(path)
        try:
            with open(building, "xb") as file:
                # 2. Flush the content first: after a power cut the new name must not lead to an
                # empty file.
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(building, path)
            # 3. Flush the folder, which is where the new name is stored.
            sync(path.parent)
        except BaseException:
            building.unlink(missing_ok=True)
            raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically; lone surrogates, which UTF-8 lacks, become `\\udXXX`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike, data: object) -> None:
    """Writes indented JSON atomically; raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json_text(data))


def json_text(data: object) -> str:
    """Indented JSON with a final newline; raises ValueError for NaN and infinity."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def append_bytes(path: Path, data: bytes, *, durable: bool) -> None:
    """Appends all of `data` or nothing; with `durable`, it has reached the disk on return.

    A write that fails half-way, for instance on a full disk, is undone before `UserError` is
    raised. Only a kill or a power cut can leave a part of `data` behind.
    """
    if not is_writer():
        return
    with explained(path):
        make_folder(path.parent)
        is_new = not path.exists()
        handle = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with open(handle, "ab", buffering=0) as file:
            # A file opened for appending is at its end, so this is the length to go back to.
            size = file.tell()
            try:
                rest = memoryview(data)
                while rest:  # an unbuffered write may take only a part
                    rest = rest[file.write(rest) :]
                if durable:
                    os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
        # The name of a new file is stored in its folder, which has to reach the disk as well.
        if is_new and durable:
            sync(path.parent)


@contextmanager
def atomic_directory(path: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the block ends without an exception.

    An exception in the block removes the folder and leaves `path` as it was. If `path` exists and
    is not an empty folder, it is refused with `UserError`, unless `replace` is set.
    """
    path = Path(path)
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not replace:
        raise UserError(f"{path}: already exists; remove it or choose another folder.")
    old = temporary(path, "old")
    with explained(path):
        make_folder(path.parent)
        building = temporary(path)
        building.mkdir()
        try:
            yield building
            sync_tree(building)
            # A folder cannot be renamed over a non-empty one, so the old one is renamed away
            # first. `clean_leftovers` undoes a replacement that was killed between the two.
            if taken:
                os.rename(path, old)
            os.rename(building, path)
            sync(path.parent)
        except BaseException:
            remove(building)
            # The second rename failed, so the old content goes back to its place.
            if taken and not path.exists():
                os.rename(old, path)
            raise
    # Deleting a folder takes many steps, so it comes last; `clean_leftovers` finishes after a kill.
    if taken:
        remove(old)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yields an empty folder on the disk of `path`, for what is needed while `path` is made."""
    folder = temporary(path)
    with explained(path):
        make_folder(folder)
        try:
            yield folder
        finally:
            remove(folder)


def clean_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files that killed writers left beneath `folder`.

    The caller must be the only writer. A folder that was renamed away but not yet replaced is put
    back in its place. A run in a folder beneath may have a writer of its own, and is left alone.
    """
    for parent, folders, files in os.walk(os.fspath(folder)):
        for name in [*folders, *files]:
            if not (match := _LEFTOVER.fullmatch(name)):
                continue
            path, target = Path(parent, name), Path(parent, match[2])
            # The process was killed between the two renames: the old content is still complete.
            if match[1] == "old" and not target.exists():
                os.rename(path, target)
            else:
                remove(path)
        # `os.walk` descends into what stays in this list, and the temporary folders are gone.
        stay = (name for name in folders if not _LEFTOVER.fullmatch(name))
        folders[:] = [name for name in stay if not os.path.lexists(Path(parent, name, LOCK))]


def leftover_of(name: str) -> str | None:
    """The file that a temporary name stands for; None if this package did not make the name."""
    match = _LEFTOVER.fullmatch(name)
    return match[2] if match else None


def temporary(path: Path, kind: str = "tmp") -> Path:
    """A new temporary name beside `path`; `kind` is "old" for what is about to be replaced.

    The name is random, so two writers of one path cannot rename each other's unfinished file.
    """
    # The name is cut, because with the prefix a long one would exceed the file system's limit,
    # which is in bytes.
    name = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{kind}-malt-{secrets.token_hex(4)}-{name}")


def discard(path: Path) -> None:
    """Deletes a file or folder atomically: it is renamed away before its content is deleted."""
    if path.exists():
        # A rename is one step. Deleting a folder is not, and a kill during it would leave a part.
        leaving = temporary(path)
        os.rename(path, leaving)
        remove(leaving)


def remove(path: Path) -> None:
    """Deletes a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> list[Path]:
    """Creates a folder and its parents durably; returns those it created, innermost first."""
    if path.is_dir():
        return []
    made = make_folder(path.parent)
    try:
        # Another process may make the same folder at this moment.
        path.mkdir(exist_ok=True)
    except FileNotFoundError:  # although its parent exists: /proc and similar file systems
        raise UserError(f"{path}: no folder can be made there; choose another.") from None
    sync(path.parent)
    return [path, *made]


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH or not path.is_dir():
            raise


def sync_tree(path: Path) -> None:
    """Flushes a file, or a folder with everything beneath it, to the disk."""
    if path.is_file():
        sync(path)
    for parent, _, files in os.walk(path):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))
