"""Files and folders that appear whole or not at all.

Everything is built under a temporary name in the same folder, flushed to the disk (`fsync`),
renamed into place, and the folder that now names it is flushed too. A writer that is killed leaves
the old state and a leftover, which `clean_leftovers` removes when the run is next opened.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.storage.writers import writes

_LEFTOVER = re.compile(r"\.(tmp|old)-malt-[0-9a-f]{8}-(.+)", re.DOTALL)
"""The names only we make. Anything else that is hidden or temporary is somebody's own."""
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
        building = temporary(path)
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
    write_text(path, json_text(data))


def json_text(data: object) -> str:
    """Indented JSON with a newline at its end; raises ValueError for NaN and infinity."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
    old = temporary(path, "old")
    with explained(path):
        make_folder(path.parent)
        building = temporary(path)
        building.mkdir()
        try:
            yield building
            sync_tree(building)
            if taken:  # a folder cannot be renamed over a full one: see clean_leftovers
                os.rename(path, old)
            os.rename(building, path)
            sync(path.parent)
        except BaseException:
            remove(building)
            if taken and not path.exists():
                os.rename(old, path)
            raise
    if taken:
        remove(old)


def clean_leftovers(folder: str | os.PathLike) -> None:
    """Removes what killed writers left beneath `folder`; its caller must be the only writer.

    A folder caught in the middle of its replacement (an old NAME without a new one) is put back.
    """
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if not (ours := _LEFTOVER.fullmatch(name)):
                continue
            path, target = Path(parent, name), Path(parent, ours[2])
            if ours[1] == "old" and not target.exists():
                os.rename(path, target)
            else:
                remove(path)
        folders[:] = [name for name in folders if not _LEFTOVER.fullmatch(name)]


def leftover_of(name: str) -> str | None:
    """The name of the file or folder that a killed writer left `name` of; None for any other."""
    ours = _LEFTOVER.fullmatch(name)
    return ours[2] if ours else None


def discard(path: Path) -> None:
    """Takes a file or folder away at once, whole, however long the deleting itself takes."""
    if path.exists():
        leaving = temporary(path)
        os.rename(path, leaving)
        remove(leaving)


def make_folder(path: Path) -> list[Path]:
    """Creates `path` and its parents so that a power cut cannot take them away again.

    Returns those that it created, innermost first.
    """
    if path.is_dir():
        return []
    made = make_folder(path.parent)
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError:  # though its parent is there: /proc and its like
        raise UserError(f"{path}: no folder can be made there; choose another.") from None
    sync(path.parent)
    return [path, *made]


def open_regular(path: str | os.PathLike, flags: int) -> int:
    """Like `os.open`, but only of a regular file, and to write only of one in its own place.

    What a link names is not ours to write, and a pipe without a writer would never be read.
    """
    if flags & (os.O_WRONLY | os.O_RDWR):
        flags |= os.O_NOFOLLOW
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        found = "a link" if error.errno == errno.ELOOP else "no regular file"
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
        found = "no regular file"
    raise UserError(f"{path}: is {found}; put the file itself there, or remove what is there.")


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a regular file."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()


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


def temporary(path: Path, kind: str = "tmp") -> Path:
    """A name beside `path`, for what is not yet or (`old`) no longer there.

    A new one each time, so that two writers of one path cannot rename each other's half file.
    """
    return path.with_name(f".{kind}-malt-{secrets.token_hex(4)}-{path.name[:200]}")


def remove(path: Path) -> None:
    """Deletes a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
