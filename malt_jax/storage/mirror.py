"""A run's sealed files in a place that outlives its machine: a folder, `s3://`, `gs://`.

The mirror has the layout of the run directory. A file is copied once it is sealed, and the manifest
after the files it covers, so that a mirror is always a run that could be continued. Any URL that
fsspec reads and writes will do; `s3://` needs s3fs and `gs://` gcsfs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from malt_jax.errors import UserError
from malt_jax.storage import manifest
from malt_jax.storage.atomic import make_folder, remove, sync_tree, write_bytes

CONFIG = "config.yaml"
LOGS = ("metrics.jsonl",)
"""Not sealed, and copied as they stand."""
BEGUN = ".from-mirror"
"""Stands in a run directory while it is fetched, and after a kill says that it was."""


def push(run: str | os.PathLike, url: str) -> None:
    """Copies what the run has sealed and the mirror lacks, then the manifest.

    Raises UserError when the mirror is another run's, or can't be written; the run itself is whole.
    """
    root, here = Path(run), manifest.load(run)
    with _explained(url, "written"):
        there = (_manifest(url) or (None,))[0]
        if there and there["config_sha256"] != here["config_sha256"]:
            raise UserError(
                f"mirror: {url} holds another run (made with another config); choose another."
            )
        sealed = there["artefacts"] if there else {}
        new = [
            file
            for file, entry in here["artefacts"].items()
            if sealed.get(file, {}).get("sha256") != entry["sha256"]
        ]
        fs, base = _open(url)
        logs = [file for file in LOGS if (root / file).exists()]
        for file in [*new, *logs, CONFIG, manifest.NAME]:
            fs.put_file(str(root / file), f"{base}/{file}")


def pull(url: str, run: Path) -> None:
    """Makes a run directory of the mirror; killed on the way, it may be called again.

    Content is checked where a stage uses it, against the manifest, as that of any run. Of a fetch
    that fails nothing is left, because a later one begins anew.
    """
    fetched: list[str] = []
    try:
        with _explained(url, "read"):
            found = _manifest(url)
            if found is None:
                raise UserError(f"{url}: no run is mirrored there: it has no {manifest.NAME}.")
            data, raw = found
            make_folder(run)
            (run / BEGUN).touch()
            fs, base = _open(url)
            logs = [file for file in LOGS if fs.exists(f"{base}/{file}")]
            fetched += [*data["artefacts"], *logs, CONFIG]
            for file in fetched:
                make_folder((run / file).parent)
                fs.get_file(f"{base}/{file}", str(run / file))
            sync_tree(run)
            write_bytes(run / manifest.NAME, raw)
    except UserError:
        for name in {PurePosixPath(file).parts[0] for file in (*fetched, BEGUN)}:
            remove(run / name)
        raise
    remove(run / BEGUN)


def config(url: str) -> tuple[bytes, str] | None:
    """config.yaml of the run that is mirrored there, and its SHA-256; None where no run is."""
    with _explained(url, "read"):
        found = _manifest(url)
        if found is None:
            return None
        fs, base = _open(url)
        return fs.cat_file(f"{base}/{CONFIG}"), found[0]["config_sha256"]


def refuse_overlap(url: str, run: Path) -> None:
    """Refuses a mirror that is the run directory, holds it or lies in it, and a URL of no store."""
    with _explained(url, "opened"):
        fs, base = _open(url)
        if "file" not in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
            return
    here, there = Path(os.path.realpath(run)), Path(os.path.realpath(base))
    if here == there or here in there.parents or there in here.parents:
        raise UserError(
            f"mirror: {url} and the run directory {run} share files; choose a mirror that is "
            "neither in the run directory nor around it."
        )


def _manifest(url: str) -> tuple[dict[str, Any], bytes] | None:
    """The manifest there and its bytes, checked as that of any run."""
    fs, base = _open(url)
    try:
        raw = fs.cat_file(f"{base}/{manifest.NAME}")
    except FileNotFoundError:
        return None
    try:
        return manifest.parse(raw), raw
    except ValueError as error:
        raise UserError(
            f"mirror: the {manifest.NAME} of {url} cannot be trusted ({error}); restore it or "
            "choose another mirror."
        ) from None


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path within it."""
    from fsspec.core import url_to_fs

    local = "://" not in url or url.startswith("file://")
    fs, base = url_to_fs(url, **({"auto_mkdir": True} if local else {}))
    return fs, base.rstrip("/")


@contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each store's client lets its own errors through
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = "Mend this, or choose another mirror,"
        if what == "written":
            advice = "The run directory itself is whole; mend this"
        raise UserError(
            f"mirror: {url} could not be {what}: {first}. {advice} and run the command again."
        ) from error
