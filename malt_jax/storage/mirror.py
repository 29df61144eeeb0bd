"""A copy of a run's sealed files that outlives its machine: in a folder, `s3://` or `gs://`.

The mirror has the layout of the run directory. A file is copied once it is sealed, and the manifest
after the files it names, so a mirror always holds a run that can be continued. Any URL that fsspec
reads and writes will do; `s3://` needs s3fs and `gs://` needs gcsfs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from malt_jax.errors import UserError, first_line
from malt_jax.storage import config_file, manifest
from malt_jax.storage.atomic import (
    make_folder,
    open_regular,
    remove,
    sync,
    sync_tree,
    write_bytes,
)

LOGS = ("metrics.jsonl",)
"""Files that are not sealed and are copied as they are."""
BEGUN = ".from-mirror"
"""Marks a run directory that is being fetched, so that a killed fetch is recognised later."""


class Store:
    """Files by name under a URL."""

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        # fsspec makes the missing folders of a local path; an object store has no folders to make.
        local = "://" not in url or url.startswith("file://")
        self.url = url
        self._fs, base = url_to_fs(url, **({"auto_mkdir": True} if local else {}))
        self.base = base.rstrip("/")

    @cached_property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        try:
            return self._fs.cat_file(self._place(name))
        except FileNotFoundError:
            return None

    def get(self, name: str, target: Path) -> None:
        self._fs.get_file(self._place(name), str(target))

    def has(self, name: str) -> bool:
        return self._fs.exists(self._place(name))

    def put(self, source: Path, name: str) -> None:
        """Copies a file into the store, where it replaces an older one as a whole."""
        os.close(open_regular(source, os.O_RDONLY))  # a pipe would never end
        place = self._place(name)
        if not self.is_local:  # object stores show an upload only once it is complete
            return self._fs.put_file(str(source), place)
        # A folder shows a file while it is being written. So the copy is made under another name,
        # flushed, and renamed over the old file in one step.
        make_folder(Path(place).parent)
        partial = Path(place).with_name(".partial-malt")
        remove(partial)
        shutil.copyfile(source, partial)
        sync(partial)
        os.replace(partial, place)

    def _place(self, name: str) -> str:
        """The path of a file in the store; in a folder, only plain files and folders are used.

        A folder may be a stranger's: reading a pipe would block, and a link leads out of it.
        """
        if self.is_local:
            path = Path(self.base)
            for part in PurePosixPath(name).parts:
                path /= part
                last = path == Path(self.base, name)
                plain = path.is_file() if last else path.is_dir()
                if path.is_symlink() or (os.path.lexists(path) and not plain):
                    raise UserError(
                        f"mirror: {path} is a link, or not a {'file' if last else 'folder'}; "
                        "remove it or choose another mirror."
                    )
        return f"{self.base}/{name}"


def push(run: str | os.PathLike, url: str) -> None:
    """Copies the sealed files that the mirror lacks, then the manifest.

    Raises UserError if the mirror holds another run or cannot be written; the run itself is intact.
    """
    root, here = Path(run), manifest.load(run)
    with _explained(url, "written"):
        store = Store(url)
        there, _ = _manifest(store)
        if there and there["config_sha256"] != here["config_sha256"]:
            raise UserError(
                f"mirror: {url} holds another run (made with another config); choose another."
            )
        # The hashes in the mirror's manifest say what it has; the mirrored files themselves are not
        # read.
        mirrored = there["artefacts"] if there else {}
        new = [
            file
            for file, entry in here["artefacts"].items()
            if mirrored.get(file, {}).get("sha256") != entry["sha256"]
        ]
        logs = [file for file in LOGS if (root / file).exists()]
        # The manifest goes last: also after a kill it names only files that are already there.
        for file in [*new, *logs, config_file.NAME, manifest.NAME]:
            store.put(root / file, file)


def pull(url: str, run: Path, accept: Callable[[bytes, str], None] | None = None) -> bool:
    """Copies the mirrored run into a run directory; returns False if no run is mirrored there.

    First, `accept` is given its config.yaml and the SHA-256 that this must have, and may raise.
    Other contents are checked where a stage uses them, as in any run. A killed copy is repeated
    from the start by the next call; if the copy fails, its files are removed.
    """
    begun: list[str] = []
    try:
        with _explained(url, "read"):
            store = Store(url)
            data, raw = _manifest(store)
            if data is None:
                return False
            if accept:
                accept(store.read(config_file.NAME) or b"", data["config_sha256"])
            make_folder(run)
            # The marker tells the next start that this folder is ours and may be fetched again.
            begun.append(BEGUN)
            (run / BEGUN).touch()
            logs = [file for file in LOGS if store.has(file)]
            files = [*data["artefacts"], *logs, config_file.NAME]
            # The files are listed before they are copied, so that a copy that fails half-way is
            # removed too.
            begun += files
            for file in files:
                make_folder((run / file).parent)
                store.get(file, run / file)
            # The files reach the disk before the manifest that makes the folder a run. The bytes
            # written are those checked above, because a second read could give a newer manifest.
            sync_tree(run)
            write_bytes(run / manifest.NAME, raw)
    except UserError:
        # The first part of each path is enough: it also removes the folders made for the copy.
        for name in {PurePosixPath(file).parts[0] for file in begun}:
            remove(run / name)
        raise
    remove(run / BEGUN)
    return True


def refuse_overlap(url: str, run: Path) -> None:
    """Refuses a mirror that overlaps the run directory, or whose URL cannot be opened."""
    with _explained(url, "opened"):
        store = Store(url)
        if not store.is_local:
            return
    # Links are followed on both sides, because they could hide that the two folders are the same.
    here, there = Path(os.path.realpath(run)), Path(os.path.realpath(store.base))
    if here == there or here in there.parents or there in here.parents:
        raise UserError(
            f"mirror: {url} and the run directory {run} share files; choose a mirror that is "
            "neither in the run directory nor around it."
        )


def _manifest(store: Store) -> tuple[dict[str, Any] | None, bytes]:
    """The manifest in the store and its bytes; (None, b"") if there is none."""
    raw = store.read(manifest.NAME)
    if raw is None:
        return None, b""
    try:
        return manifest.parse(raw), raw
    except ValueError as error:
        raise UserError(
            f"mirror: the {manifest.NAME} of {store.url} cannot be trusted ({error}); restore it "
            "or choose another mirror."
        ) from None


@contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    """Turns any error of a store into a `UserError`: each store's client raises its own kinds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        advice = "Correct this, or choose another mirror,"
        if what == "written":
            advice = "The run directory itself is intact; correct this"
        raise UserError(
            f"mirror: {url} could not be {what}: {first_line(error)}. {advice} and run the command "
            "again."
        ) from error
