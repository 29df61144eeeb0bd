"""Checkpoints that are whole or do not count.

    FOLDER/NAME/state/      Orbax: one array a leaf, by its path in the tree
    FOLDER/NAME/seal.json   {"facts", "leaves": {path: [dtype, shape]}, "files": {file: SHA-256},
                             "seal": SHA-256 of all that}

`seal.json` is written last and atomically, so a folder without one is a save that was cut short. It
also covers what Orbax does not: a flipped bit, and a wrong dtype, which Orbax casts silently.
Arrays are saved from and restored to whatever devices hold them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import jax

from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter, stack_adapter, unstack_adapter
from malt_jax.storage import selfsealed
from malt_jax.storage.atomic import discard, explained, make_folder, write_bytes
from malt_jax.storage.writers import meet, writes

SEAL, STATE = "seal.json", "state"
Tree = TypeVar("Tree")


def save(folder: Path, name: str, tree: Any, facts: dict[str, Any]) -> Path:
    """Writes `tree` (arrays on any devices) and JSON `facts` as checkpoint `name` of `folder`."""
    from orbax.checkpoint import v1 as ocp

    path = (folder / name).absolute()
    leaves = _leaves(tree)
    with explained(path):
        if writes():
            discard(path)
            make_folder(path)
        meet(f"checkpoint {name} begins")
        ocp.save(path / STATE, leaves)
        if writes():
            kinds = {key: [str(leaf.dtype), list(leaf.shape)] for key, leaf in leaves.items()}
            seal = {"facts": facts, "leaves": kinds, "files": _hashes(path)}
            write_bytes(path / SEAL, selfsealed.encode(seal))
    meet(f"checkpoint {name} sealed")
    return path


def restore(path: Path, like: Tree) -> Tree:
    """The saved tree, laid out as `like` (arrays, or `jax.ShapeDtypeStruct` with shardings).

    Raises UserError for a checkpoint that is incomplete or damaged, or whose leaves differ from
    `like` in name, shape or dtype.
    """
    from orbax.checkpoint import v1 as ocp

    wanted = _leaves(like)
    saved = _verified(path)["leaves"]
    asked = {key: [str(leaf.dtype), list(leaf.shape)] for key, leaf in wanted.items()}
    different = sorted(key for key in saved.keys() | asked if saved.get(key) != asked.get(key))
    if different:
        key = different[0]
        raise UserError(
            f"{path}: does not fit this training: {key} is {_kind(saved.get(key))} there and "
            f"{_kind(asked.get(key))} here ({len(different)} such arrays). Train with the config "
            "it was made with, or remove it to begin anew."
        )
    found = ocp.load(path.absolute() / STATE, jax.tree.map(_abstract, wanted))
    return jax.tree.unflatten(jax.tree.structure(like), [found[key] for key in wanted])


def facts(path: Path) -> dict[str, Any]:
    """What was said about the checkpoint when it was saved."""
    return _read(path)["facts"]


def sealed(folder: Path, prefix: str = "") -> list[Path]:
    """The complete checkpoints of a folder whose names begin with `prefix`, in order of name."""
    return [path for path in _begun(folder, prefix) if (path / SEAL).is_file()]


def remove(folder: Path, prefix: str, keep: str = "") -> None:
    """Takes away all checkpoints whose names begin with `prefix`, complete or not, but for one."""
    if writes():
        for path in _begun(folder, prefix):
            if path.name != keep:
                discard(path)


def _begun(folder: Path, prefix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.startswith(prefix))


def save_trainable(folder: Path, name: str, trainable: Any, about: dict[str, Any]) -> Path:
    """Saves an adapter or full parameters; an adapter brings its scale along."""
    if isinstance(trainable, Adapter):
        kind = {"kind": "adapter", "scale": trainable.scale}
        return save(folder, name, stack_adapter(trainable), {**about, **kind})
    return save(folder, name, trainable, {**about, "kind": "full"})


def load_trainable(path: Path, like: Tree) -> Tree:
    """What `save_trainable` wrote, in the form of `like`: the same kind, stacked or not."""
    found = facts(path)
    expected = "adapter" if isinstance(like, Adapter) else "full"
    if found["kind"] != expected:
        raise UserError(
            f"{path}: holds {found['kind']} weights, not {expected}; give the `train.full` it has."
        )
    if not isinstance(like, Adapter):
        return restore(path, like)
    if abs(found["scale"] - like.scale) > 1e-9:
        raise UserError(
            f"{path}: its adapter is scaled by {found['scale']}, this config's by {like.scale}; "
            "give the `train.lora` it was made with."
        )
    adapter = restore(path, stack_adapter(like))
    return adapter if like.stacked else unstack_adapter(adapter)


def _leaves(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
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
    hashes = {}
    for file in sorted((path / STATE).rglob("*")):
        if file.is_file():
            with open(file, "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            hashes[file.relative_to(path).as_posix()] = digest
    return hashes
