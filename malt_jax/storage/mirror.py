"""A copy of a run that outlives its machine: in a folder, `s3://` or `gs://`.

The mirror has the layout of the run directory. A file is copied once it is sealed, and the manifest
after the files it names, so a mirror always holds a run that can be continued. Work that is not
sealed yet lies beside it (`unfinished`). `uploader` copies both while the run goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from malt_jax.errors import Unavailable, UserError, first_line
from malt_jax.regular_files import read_bytes
from malt_jax.storage import config_file, lock, manifest, unfinished
from malt_jax.storage.atomic import make_folder, remove, sync_tree, write_bytes
from malt_jax.storage.schema import LOCK
from malt_jax.storage.store import FINAL, FOLDER_FINAL, Store, is_folder

LOGS = ("metrics.jsonl",)
"""Files that are not sealed and are copied as they are, with every manifest.

What they gain until the next one is in the unfinished work (`unfinished`), which replaces them
where it can be used: a training of hours seals nothing. Where it cannot, these copies remain."""
BEGUN = ".from-mirror"
"""Marks a run directory that is being fetched, so that a killed fetch is recognised later."""


def push(run: str | os.PathLike, url: str) -> None:
    """Copies the sealed files that the mirror lacks, then the manifest.

    Raises UserError if the mirror holds another run or cannot be written; the run itself is intact.
    """
    root, raw = Path(run), b""
    with explained(url, "written"):
        store = Store(url)
        there, _ = _manifest(store)
        # The hashes in the mirror's manifest say what it has; the mirrored files themselves are not
        # read.
        mirrored = dict(there["artefacts"]) if there else {}
        # The run may go on while its files are copied, so this is repeated until all that the
        # newest manifest names is there.
        while raw != (now := read_bytes(root / manifest.NAME)):
            raw, here = now, manifest.load(root)
            if there and there["config_sha256"] != here["config_sha256"]:
                raise UserError(
                    f"mirror: {url} holds another run (made with another config); choose another."
                )
            if _has_gone_on(there, here):
                # What an old copy of the run would put there must not replace what is newer.
                raise UserError(
                    f"mirror: {url} has gone on without {root}, from another copy of this run; "
                    "start the command again to continue from the mirror, or choose another one."
                )
            there_already = {
                file
                for file, entry in here["artefacts"].items()
                if mirrored.get(file, {}).get("sha256") == entry["sha256"]
            }
            if mirrored.keys() & here["artefacts"].keys() - there_already:
                # A file that was made again takes the place of the old one, which no manifest may
                # name by then.
                store.put_bytes(manifest.only(here, there_already), manifest.NAME)
            for file, entry in here["artefacts"].items():
                if file in there_already:
                    continue
                try:
                    store.put(root / file, file)
                except FileNotFoundError:
                    if (root / file).exists():
                        raise
                    break  # moved by a stage that is done again, so the manifest has changed
                mirrored[file] = entry
            for file in LOGS:
                if (root / file).exists():
                    store.put_bytes(read_bytes(root / file), file)
            store.put(root / config_file.NAME, config_file.NAME)
            if raw != read_bytes(root / manifest.NAME):
                # The run goes on faster than it is copied: what is there can be continued already.
                same = {f for f, entry in here["artefacts"].items() if mirrored.get(f) == entry}
                store.put_bytes(manifest.only(here, same), manifest.NAME)
        # The manifest goes last: also after a kill it names only files that are already there. The
        # bytes are those whose files were copied, because the file may have changed by now.
        store.put_bytes(raw, manifest.NAME)


def has_gone_on(url: str, run: Path) -> bool:
    """Whether the mirror is further than this run directory, by another machine's work."""
    # A store that does not answer at once is asked again by the first copy.
    with contextlib.suppress(Unavailable), explained(url, "read"):
        return _has_gone_on(_manifest(Store(url, patience=0.0))[0], manifest.load(run))
    return False


def _has_gone_on(there: dict[str, Any] | None, here: dict[str, Any]) -> bool:
    if not there or there["config_sha256"] != here["config_sha256"]:
        return False
    apart = there.get("lineage", [""])[-1] not in here.get("lineage", [""])
    behind = there.get("writes", 0) > here.get("writes", 0)
    return apart or (behind and there["artefacts"] != here["artefacts"])


def pull(url: str, run: Path, accept: Callable[[bytes, str], None] | None = None) -> bool:
    """Copies the mirrored run into a run directory; returns False if no run is mirrored there.

    First, `accept` is given its config.yaml and the SHA-256 that this must have, and may raise.
    Work that was not sealed yet is copied if all of it is there and intact. Other contents are
    checked where a stage uses them, as in any run. A killed copy is repeated from the start by the
    next call; if the copy fails, its files are removed.
    """
    begun: set[str] = set()
    try:
        with explained(url, "read"):
            store = Store(url)
            data, raw = _manifest(store)
            if data is None:
                return False
            if accept:
                accept(store.read(config_file.NAME) or b"", data["config_sha256"])
            make_folder(run)
            logs = [file for file in LOGS if store.has(file)]
            files = [*data["artefacts"], *logs, config_file.NAME]
            # The marker tells the next start that this folder is ours and may be fetched again.
            write_bytes(run / BEGUN, b"")
            # The first part of each path also names the folders made for the copy.
            written = (*files, *unfinished.WORK, unfinished.METRICS)
            begun = {PurePosixPath(file).parts[0] for file in written}
            # What a fetch that was killed has left may belong to an older state of the mirror.
            _remove(run, begun)
            begun.add(BEGUN)
            for file in files:
                make_folder((run / file).parent)
                store.get(file, run / file, data["artefacts"].get(file, {}).get("bytes"))
            _pull_unfinished(store, run, data)
            # The files reach the disk before the manifest that makes the folder a run. The bytes
            # written are those checked above, because a second read could give a newer manifest.
            sync_tree(run)
            write_bytes(run / manifest.NAME, raw)
    except UserError:
        _remove(run, begun)
        raise
    remove(run / BEGUN)
    return True


def _remove(run: Path, names: set[str]) -> None:
    for name in names:
        remove(run / name)


def look(url: str) -> dict[str, Any] | None:
    """The manifest of the run that is mirrored there; None if there is none yet."""
    with explained(url, "read"):
        return _manifest(Store(url))[0]


def refuse_overlap(url: str, run: Path) -> None:
    """Refuses a mirror that overlaps the run directory, or whose URL cannot be opened."""
    with explained(url, "opened"):
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
    # A mirror has no copy of its manifest and no lock: that is how it is told from a run.
    for folder in (there, *there.parents):
        if os.path.exists(folder / manifest.TWIN) or _is_run_lock(folder / LOCK):
            where = "is" if folder == there else "lies in"
            raise UserError(
                f"mirror: {url} {where} the run directory {folder}, whose files the copy would "
                "replace; choose a folder of its own for each mirror."
            )


def _is_run_lock(path: Path) -> bool:
    """Whether a run has written the file; an empty one may be any program's."""
    with contextlib.suppress(OSError):
        return lock.is_lock(path) and path.stat().st_size > 0
    return False


def mirror_around(path: str | os.PathLike) -> Path | None:
    """The mirror, in a folder, in which a path lies, or None."""
    for folder in Path(os.path.realpath(path)).parents:
        # Many programs have a file of this name; one that is no manifest of a run says nothing.
        with contextlib.suppress(OSError, ValueError, RecursionError, UserError):
            manifest.parse(read_bytes(folder / manifest.NAME))
            return folder
    return None


def _pull_unfinished(store: Store, run: Path, data: dict[str, Any]) -> None:
    """Copies the work that was not sealed yet.

    Work that is damaged or not complete is not used, and the run continues from what is sealed.
    """
    try:
        unfinished.pull(store, run, data)
    except ValueError as error:
        print(
            f"mirror: the unfinished work in {store.url} is not used ({first_line(error)}); the "
            "run continues from its last finished block or phase",
            file=sys.stderr,
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
def explained(url: str, what: str) -> Iterator[None]:
    """Turns any error of a store into a `UserError`: each store's client raises its own kinds.

    It is `Unavailable` unless another try would only repeat it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        advice = "Correct this, or choose another mirror,"
        if what == "written":
            advice = "The run directory itself is intact; correct this"
        final = isinstance(error, FOLDER_FINAL if is_folder(url) else FINAL)
        raise (UserError if final else Unavailable)(
            f"mirror: {url} could not be {what}: {first_line(error)}. {advice} and run the command "
            "again."
        ) from error
