"""Checkpoints in a folder that are complete or do not count.

    FOLDER/NAME/state/      Orbax: one array per leaf, by its path in the tree
    FOLDER/NAME/seal.json   {"facts", "leaves": {path: [dtype, shape]}, "files": {file: SHA-256},
                             "seal": SHA-256 of all that}

`seal.json` is written last and atomically, so a folder without one is a save that was cut short. It
also covers what Orbax does not check: a flipped bit, and a wrong dtype, which Orbax casts in
silence. Arrays are saved from and restored to whatever devices hold them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from malt_jax.errors import UserError
from malt_jax.hashing import files_beneath, sha256_all
from malt_jax.storage import selfsealed, signals
from malt_jax.storage.atomic import (
    discard,
    explained,
    make_folder,
    sync_tree,
    write_bytes,
    write_json,
)
from malt_jax.storage.references import load_or_compute
from malt_jax.storage.writers import any_of, is_writer, wait_for_all

SEAL, STATE = "seal.json", "state"


class CheckpointFolder:
    """The `training.saver.Saver` of a run directory: one folder per phase."""

    def __init__(self, folder: Path, save_minutes: float = 0.0):
        """`save_minutes`: time from one checkpoint to the next that is due; 0: none is."""
        self.folder, self._save_seconds = Path(folder), 60 * save_minutes
        self._saved_at = time.monotonic()

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def names(self, prefix: str = "") -> list[str]:
        return [path.name for path in self._begun(prefix) if (path / SEAL).is_file()]

    def save(self, name: str, tree: Any, facts: dict[str, Any]) -> None:
        """Writes `tree` (arrays on any devices) and JSON `facts`; older files of the name go."""
        from orbax.checkpoint import v1 as ocp

        path = (self.folder / name).absolute()
        leaves = _leaves(tree)
        with explained(path):
            if is_writer():
                discard(path)
                make_folder(path)
            # Every process writes its part of the arrays, so none may begin before the old files
            # are gone.
            wait_for_all(f"checkpoint {name} begins")
            ocp.save(path / STATE, leaves)
            if is_writer():
                # Orbax flushes the arrays, but not the files that describe them, nor the folders.
                sync_tree(path)
                kinds = {key: [str(leaf.dtype), list(leaf.shape)] for key, leaf in leaves.items()}
                seal = {"facts": facts, "leaves": kinds, "files": _hashes(path)}
                write_bytes(path / SEAL, selfsealed.encode(seal))
        wait_for_all(f"checkpoint {name} sealed")
        self._saved_at = time.monotonic()

    def facts(self, name: str) -> dict[str, Any]:
        return _read(self.folder / name)["facts"]

    def restore(self, name: str, like: Any) -> Any:
        """The saved tree, laid out as `like` (arrays or `jax.ShapeDtypeStruct` with shardings).

        Raises UserError for a checkpoint that is incomplete or damaged, or whose leaves differ
        from `like` in name, shape or dtype.
        """
        from orbax.checkpoint import v1 as ocp

        path = (self.folder / name).absolute()
        wanted = _leaves(like)
        # All files are hashed before Orbax reads any of them.
        saved = _verified(path)["leaves"]
        asked = {key: [str(leaf.dtype), list(leaf.shape)] for key, leaf in wanted.items()}
        different = sorted(key for key in saved.keys() | asked if saved.get(key) != asked.get(key))
        if different:
            key = different[0]
            raise UserError(
                f"{path}: does not fit this training: {key} is {_kind(saved.get(key))} there and "
                f"{_kind(asked.get(key))} here ({len(different)} such arrays). Train with the "
                "config it was made with, or remove it to begin anew."
            )
        found = ocp.load(path / STATE, jax.tree.map(_abstract, wanted))
        # Arrays are found by their path in the tree, in the order of `like` and not of the file.
        return jax.tree.unflatten(jax.tree.structure(like), [found[key] for key in wanted])

    def remove(self, prefix: str, keep: Collection[str] = ()) -> None:
        if is_writer():
            for path in self._begun(prefix):
                if path.name not in keep:
                    discard(path)

    def references(self, key: Mapping[str, str], compute: Callable[[], np.ndarray]) -> np.ndarray:
        return load_or_compute(self.folder / "references.npz", key, compute)

    def stopped_batch(self, record: dict[str, Any]) -> str:
        path = self.folder / "stopped-batch.json"
        write_json(path, record)
        return str(path)

    def save_due(self) -> bool:
        if not self._save_seconds:
            return False
        # All processes save or none does, so their clocks are not asked one by one.
        due = time.monotonic() - self._saved_at > self._save_seconds
        return any_of(due, "checkpoint due")

    def stop_requested(self) -> bool:
        return signals.stop_requested()

    def raise_if_stopped(self) -> None:
        signals.raise_if_stopped()

    def _begun(self, prefix: str) -> list[Path]:
        """Checkpoints of the prefix, complete or not, by name."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.startswith(prefix))


def _leaves(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    # A leaf that asks for no layout goes to the first device of this process.
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _kind(leaf: list[Any] | None) -> str:
    return "absent" if leaf is None else f"{leaf[0]} {leaf[1]}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return selfsealed.decode((path / SEAL).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a complete checkpoint ({SEAL}: {error}); restore it from a copy, or "
            "remove it and the same command trains from what was saved before it."
        ) from None


def _verified(path: Path) -> dict[str, Any]:
    seal = _read(path)
    found = _hashes(path)
    wrong = sorted(f for f in seal["files"].keys() | found if seal["files"].get(f) != found.get(f))
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]} is not what was saved ({len(wrong)} such files); restore it from "
            "a copy, or remove this checkpoint and the same command trains from what was saved "
            "before it."
        )
    return seal


def _hashes(path: Path) -> dict[str, str]:
    files = sorted(files_beneath(path / STATE))
    names = (file.relative_to(path).as_posix() for file in files)
    return dict(zip(names, sha256_all(files), strict=True))
