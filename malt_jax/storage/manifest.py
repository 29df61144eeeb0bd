"""RUN/manifest.json: what a run was made with, and a SHA-256 of every file a stage has finished.

    {"format": 1, ...facts (versions, git_commit, devices, model),
     "inputs":    {path: sha256},                          what was read
     "stages":    {stage: {"done": true, "units": [...]}}, in the order of their first seal
     "artefacts": {path in the run: {"sha256", "bytes", "stage"}},
     "seal": sha256 of all the above}

A *unit* is a file or folder sealed as a whole: a shard, a checkpoint, an export. `seal` writes the
manifest last and atomically, so that a unit either is covered or is work still owed. The manifest
guards itself with its own hash and has a twin, `manifest.copy.json`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from malt_jax.errors import UserError
from malt_jax.storage import selfsealed
from malt_jax.storage.atomic import make_folder, sync_tree, write_bytes
from malt_jax.storage.hashing import files_beneath, sha256_all
from malt_jax.storage.writers import first, meet

NAME, TWIN = "manifest.json", "manifest.copy.json"
Paths = Iterable[str | os.PathLike]


def create(run: str | os.PathLike, facts: dict[str, Any]) -> None:
    """Writes the first manifest of a run: the facts about it and no artefact yet."""
    _write(_root(run), {"format": 1, **facts, "inputs": {}, "stages": {}, "artefacts": {}})


def amend(run: str | os.PathLike, **facts: Any) -> None:
    """Adds or replaces facts about the run."""
    _write(_root(run), {**load(run), **facts})


def load(run: str | os.PathLike) -> dict[str, Any]:
    """The manifest; a missing or damaged one is refused with `UserError`, never guessed."""
    path = _root(run) / NAME
    try:
        data = selfsealed.decode(path.read_bytes())
        units = [unit for stage in data["stages"].values() for unit in stage["units"]]
        if any(PurePosixPath(p).is_absolute() or ".." in PurePosixPath(p).parts for p in units):
            raise ValueError("a path in it leaves the run directory")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise UserError(
            f"{path}: the manifest cannot be trusted ({reason}); restore it, for instance from its "
            f"twin {TWIN} beside it, or choose another --output-dir."
        ) from error
    return data


def record_inputs(run: str | os.PathLike, paths: Paths) -> None:
    """Hashes what the run reads (files or folders); an input that has changed is refused by name.

    A path is recorded when first seen, so the same input must later have the same content.
    """
    first(lambda: _record_inputs(run, paths))


def _record_inputs(run: str | os.PathLike, paths: Paths) -> None:
    data = load(run)
    paths = [Path(path) for path in paths]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise UserError(f"{', '.join(missing)}: no such file or folder.")
    files = [file for path in paths for file in files_beneath(path)]
    hashes = {str(file): digest for file, digest in zip(files, sha256_all(files), strict=True)}
    known = data["inputs"]
    changed = [path for path, digest in hashes.items() if known.get(path, digest) != digest]
    if changed:
        raise UserError(
            f"{_root(run)}: this run began with other contents of {', '.join(changed)}; restore "
            "what was there or choose another --output-dir."
        )
    if not hashes.keys() <= known.keys():
        known.update(hashes)
        _write(_root(run), data)


def seal(
    run: str | os.PathLike, stage: str, paths: Paths, *, retire: Paths = (), done: bool = True
) -> None:
    """Covers `paths` (files or folders in the run) as units of `stage`, to which it adds them.

    Units in `retire` (say, checkpoints rotated out) stop being covered and may be deleted
    afterwards. `done=False` seals progress: the stage itself is still owed. What is sealed is not
    written again before `reopen` or `redo`, or a kill in between would leave it looking damaged.
    """
    meet(f"seal {stage}")  # all are done with what is to be covered
    first(lambda: _seal(run, stage, paths, retire, done))


def _seal(run: str | os.PathLike, stage: str, paths: Paths, retire: Paths, done: bool) -> None:
    root, data = _root(run), load(run)
    units = [_relative(root, path) for path in paths]
    entry = data["stages"].setdefault(stage, {"done": False, "units": []})
    _forget(data, stage, [*units, *(_relative(root, path) for path in retire)])
    entry["units"] += units
    entry["done"] = done
    for unit in units:
        if not (root / unit).exists():
            raise FileNotFoundError(root / unit)
        sync_tree(root / unit)  # what the manifest promises must survive a power cut
    files = [file for unit in units for file in files_beneath(root / unit)]
    for file, digest in zip(files, sha256_all(files), strict=True):
        size = file.stat().st_size
        covered = {"sha256": digest, "bytes": size, "stage": stage}
        data["artefacts"][_relative(root, file)] = covered
    _write(root, data)


def stage_done(run: str | os.PathLike, stage: str) -> bool:
    """Whether the stage was sealed as finished."""
    return load(run)["stages"].get(stage, {"done": False})["done"]


def sealed_units(run: str | os.PathLike, stage: str) -> list[Path]:
    """The stage's sealed units, oldest first: the last checkpoint is the last of the list."""
    return [_root(run) / unit for unit in load(run)["stages"].get(stage, {"units": []})["units"]]


def verify(run: str | os.PathLike, paths: Paths | None = None) -> None:
    """Compares `paths` (all units when None) with what was sealed.

    Raises `UserError` naming every changed, missing and unknown file, the stage to redo, and the
    newest earlier unit that is whole.
    """
    root, data = _root(run), load(run)
    chosen = _units(data) if paths is None else [_relative(root, path) for path in paths]
    sealed = {place for file in data["artefacts"] for place in _lineage(file)}
    unsealed = [path for path in chosen if path not in sealed]
    if paths is not None and unsealed:
        raise UserError(
            f"{root}: {', '.join(unsealed)} was never finished, so it is not used; run the stage "
            "that makes it first."
        )
    damage = _damage(root, data, chosen)
    if not damage:
        return
    stage = min((stage for stage, _ in damage.values()), key=list(data["stages"]).index)
    hit = {place for file in damage for place in _lineage(file)}
    units = _units(data)
    first = next((n for n, unit in enumerate(units) if unit in hit), 0)
    whole = next((u for u in reversed(units[:first]) if not _damage(root, data, [u])), None)
    named = ", ".join(f"{file} ({finding})" for file, (_, finding) in sorted(damage.items()))
    raise UserError(
        f"{root}: not what was sealed: {named}. Nothing of it was used. Restore it (and remove "
        f"what is unknown), or run again with --redo {stage}, which sets it aside and makes it anew"
        + (f"; {whole}, sealed before it, is whole." if whole else ".")
    )


def reopen(run: str | os.PathLike, stage: str) -> None:
    """Makes `stage` owed again and uncovers all its units, which may then be overwritten."""
    root, data = _root(run), load(run)
    if stage in data["stages"]:
        _forget(data, stage, list(data["stages"][stage]["units"]))
        data["stages"][stage]["done"] = False
        _write(root, data)


def redo(run: str | os.PathLike, stage: str) -> Path:
    """Makes `stage` owed again and returns the folder its damaged units were moved to.

    Its whole units stay; its damaged ones and all units of the stages after it are moved beneath
    `RUN/set-aside/`, never deleted.
    """
    root, data = _root(run), load(run)
    if stage not in data["stages"]:
        known = ", ".join(data["stages"]) or "none yet"
        raise UserError(f"{root}: no stage named {stage!r} was sealed; sealed are: {known}.")
    stages = list(data["stages"])
    later = stages[stages.index(stage) + 1 :]
    moved = {s: list(data["stages"][s]["units"]) for s in later}
    moved[stage] = [u for u in data["stages"][stage]["units"] if _damage(root, data, [u])]
    aside = _free_aside(root)
    # Files first: a kill in between leaves them missing, which is refused, not damaged and trusted.
    for unit in (unit for units in moved.values() for unit in units if (root / unit).exists()):
        _move(root, unit, aside)
    for name, units in moved.items():
        _forget(data, name, units)
    data["stages"][stage]["done"] = False
    for name in later:
        del data["stages"][name]
    _write(root, data)
    return aside


def set_aside(run: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Moves what stands in the place of a unit but was never sealed; returns where it is now."""
    root = _root(run)
    return _move(root, _relative(root, path), _free_aside(root))


def _free_aside(root: Path) -> Path:
    folders = (root / "set-aside" / f"{number:03d}" for number in itertools.count())
    return next(folder for folder in folders if not folder.exists())


def _move(root: Path, unit: str, aside: Path) -> Path:
    make_folder((aside / unit).parent)
    os.rename(root / unit, aside / unit)
    return aside / unit


def _damage(root: Path, data: dict[str, Any], paths: list[str]) -> dict[str, tuple[str, str]]:
    """{file: (stage, finding)} for all that differs from the seal at or beneath `paths`."""
    chosen = set(paths)
    expected = {f: e for f, e in data["artefacts"].items() if _within(f, chosen)}
    found = {_relative(root, file): file for path in paths for file in files_beneath(root / path)}
    damage = {f: (e["stage"], "missing") for f, e in expected.items() if f not in found}
    for file in found.keys() - expected.keys():
        damage[file] = (_stage_of(data, file, expected), "unknown")
    same_size = []
    for file in expected.keys() & found.keys():
        size, sealed = found[file].stat().st_size, expected[file]["bytes"]
        if size == sealed:
            same_size.append(file)
        else:
            damage[file] = (expected[file]["stage"], f"{size} bytes instead of {sealed}")
    hashes = sha256_all([found[file] for file in same_size])
    for file, digest in zip(same_size, hashes, strict=True):
        if digest != expected[file]["sha256"]:
            damage[file] = (expected[file]["stage"], "content changed")
    return damage


def _stage_of(data: dict[str, Any], file: str, expected: dict[str, Any]) -> str:
    """The stage an unknown file is charged to: that of its unit, else of its neighbours."""
    for stage, entry in data["stages"].items():
        if _within(file, entry["units"]):
            return stage
    return next(iter(expected.values()))["stage"]


def _forget(data: dict[str, Any], stage: str, units: list[str]) -> None:
    entry = data["stages"][stage]
    gone = set(units)
    entry["units"] = [unit for unit in entry["units"] if unit not in gone]
    for file in [file for file in data["artefacts"] if _within(file, gone)]:
        del data["artefacts"][file]


def _units(data: dict[str, Any]) -> list[str]:
    return [unit for entry in data["stages"].values() for unit in entry["units"]]


def _within(file: str, paths: Collection[str]) -> bool:
    """Whether `file` is one of `paths` or lies beneath one."""
    return any(place in paths for place in _lineage(file))


def _lineage(file: str) -> Iterator[str]:
    """The path itself, then the folders it lies in, innermost first."""
    while file:
        yield file
        file = file.rpartition("/")[0]


def _root(run: str | os.PathLike) -> Path:
    return Path(os.path.abspath(run))


def _relative(root: Path, path: str | os.PathLike) -> str:
    # Not resolve(): a folder of the run may be a link to another disk.
    return Path(os.path.abspath(root / path)).relative_to(root).as_posix()


def _write(root: Path, data: dict[str, Any]) -> None:
    raw = selfsealed.encode(data)
    write_bytes(root / NAME, raw)
    write_bytes(root / TWIN, raw)
