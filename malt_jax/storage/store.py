"""Files by name under a URL: a folder, `s3://`, `gs://`, or whatever else fsspec reads and writes.

A fault that may pass (a server error, a timeout, throttling, an upload that was cut, credentials
that have expired and are renewed) is tried again with growing pauses, and then raised. `s3://`
needs s3fs and `gs://` needs gcsfs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from malt_jax.errors import UserError, first_line
from malt_jax.escape import one_line
from malt_jax.storage.atomic import make_folder, open_regular, remove, sync
from malt_jax.storage.signals import signal_received

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds for which an operation that fails is tried again."""
STOPPING = 20.0
"""The same once the run was asked to stop, because whoever asks kills soon after."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries; each pause is twice as long as the one before."""
FINAL = (UserError, FileNotFoundError, ImportError, NotImplementedError, ValueError, TypeError)
"""Errors that another try would only repeat: no such bucket, no such client, a malformed URL."""
FOLDER_FINAL = (*FINAL, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
"""The same where the store is a folder, in which no credentials expire."""


class Store:
    """Files by name under a URL."""

    def __init__(self, url: str, patience: float | None = None):
        """`patience`: seconds for which a fault that may pass is tried again."""
        self.url, self._given_patience = url, patience
        self._connect()

    def _connect(self, **options: Any) -> None:
        from fsspec.core import url_to_fs

        # fsspec makes the missing folders of a local path; an object store has no folders to make.
        if is_folder(self.url):
            options["auto_mkdir"] = True
        # gcsfs logs a traceback for every request that fails, also for one that is tried again.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        self._fs, base = url_to_fs(self.url, **options)
        self.base = base.rstrip("/")

    @cached_property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        try:
            return self._patiently(lambda: self._fs.cat_file(self._place(name)))
        except FileNotFoundError:
            return None

    def get(self, name: str, target: Path, size: int | None = None) -> None:
        """Copies a file out of the store; one that has not `size` bytes is fetched again."""

        def fetch() -> None:
            self._fs.get_file(self._place(name), str(target))
            # In a folder a wrong size is damage, which the stage that uses the file reports.
            if size is not None and not self.is_local and target.stat().st_size != size:
                raise OSError(f"{name} has {target.stat().st_size} bytes instead of {size}")

        self._patiently(fetch)

    def has(self, name: str) -> bool:
        return self._patiently(lambda: self._fs.exists(self._place(name)))

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder; none if there is no such folder."""
        self._fs.invalidate_cache()
        try:
            found = self._patiently(lambda: self._fs.ls(f"{self.base}/{folder}", detail=False))
        except FileNotFoundError:
            return []
        return [PurePosixPath(path).name for path in found]

    def put(self, source: Path, name: str) -> None:
        """Copies a file into the store, where it replaces an older one as a whole."""
        os.close(open_regular(source, os.O_RDONLY))  # a pipe would never end
        place = self._place(name)
        if self.is_local:
            return _replace(Path(place), lambda partial: shutil.copyfile(source, partial))
        self._patiently(
            lambda: self._upload(
                lambda: self._fs.put_file(str(source), place), place, source.stat().st_size
            )
        )

    def put_bytes(self, data: bytes, name: str) -> None:
        """Writes a file into the store, where it replaces an older one as a whole."""
        place = self._place(name)
        if self.is_local:
            return _replace(Path(place), lambda partial: partial.write_bytes(data))
        self._patiently(
            lambda: self._upload(lambda: self._fs.pipe_file(place, data), place, len(data))
        )

    def remove(self, name: str) -> None:
        """Deletes a file, if it exists."""
        place = self._place(name)
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self._fs.rm_file(place))

    def _upload(self, send: Callable[[], Any], place: str, size: int) -> None:
        """Object stores show an upload only once it is complete; this checks that it is."""
        try:
            send()
        except FileNotFoundError as error:
            # Also the answer to completing an upload a second time, where the bucket is there.
            there = False
            with contextlib.suppress(Exception):  # one may be allowed to write and not to look
                there = self._fs.exists(self.base.split("/")[0])
            raise OSError(f"{place}: the upload is gone") if there else error from error
        self._fs.invalidate_cache()
        if (there := self._fs.size(place)) != size:
            raise OSError(f"{place} has {there} bytes after an upload of {size}")

    def _patiently(self, work: Callable[[], T]) -> T:
        """Does `work`, again and again as long as it fails with an error that may pass."""
        began, pause, tries = time.monotonic(), FIRST_PAUSE, 0
        while True:
            try:
                return work()
            except Exception as error:
                patience = PATIENCE if self._given_patience is None else self._given_patience
                limit = min(STOPPING, patience) if signal_received() else patience
                over = time.monotonic() - began + pause > limit
                if self.is_local or isinstance(error, FINAL) or over:
                    raise
                if not tries:
                    print(
                        f"mirror: {self.url}: {one_line(first_line(error))}; trying again for up "
                        f"to {limit:g} s",
                        file=sys.stderr,
                    )
            tries += 1
            # A random part, so that many machines do not all return at the same moment.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)
            # A client of its own, which reads renewed credentials.
            self._connect(skip_instance_cache=True)

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


def is_folder(url: str) -> bool:
    """Whether a URL means a folder of this machine."""
    return "://" not in url or url.startswith("file://")


def _replace(place: Path, write: Callable[[Path], Any]) -> None:
    """Replaces a file of a folder as a whole: the folder shows a file while it is being written.

    So it is written under another name, flushed, and renamed over the old one in one step.
    """
    try:
        make_folder(place.parent)
    except UserError as error:
        raise error.at("mirror") from None
    partial = place.with_name(".partial-malt")
    remove(partial)
    write(partial)
    sync(partial)
    os.replace(partial, place)
    sync(place.parent)  # before a list or a manifest names the file
