"""RUN/manifest.json: what a run was made with, and the SHA-256 of every file its stages finished.

    {"format": 1, ...facts (versions, git_commit, devices, model),
     "inputs":    {path: sha256},                          what was read
     "stages":    {stage: {"done": true, "units": [...]}}, in the order in which they were sealed
     "artefacts": {path in the run: {"sha256", "bytes", "stage"}},
     "seal": sha256 of all of the above}

A *unit* is a file or folder that is sealed as a whole: a shard, a checkpoint, an export. `seal`
writes the manifest last and atomically, so a unit is either registered with its hashes or has to
be made again. The manifest carries its own hash and has a copy, `manifest.copy.json`.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from malt_jax.errors import UserError
from malt_jax.hashing import files_beneath, sha256_all
from malt_jax.regular_files import read_bytes
from malt_jax.storage import selfsealed
from malt_jax.storage.atomic import explained, make_folder, sync, sync_tree, write_bytes
from malt_jax.storage.provenance import versions
from malt_jax.storage.schema import FORMAT, NAME, SET_ASIDE, TWIN, parse
from malt_jax.storage.writers import on_writer, wait_for_all

Paths = Iterable[str | os.PathLike]
Manifest = dict[str, Any]


def create(run: str | os.PathLike, facts: dict[str, Any]) -> None:
    """Writes the first manifest of a run: facts about it, and no stages yet."""
    begun = {"format": FORMAT, **facts, "lineage": [secrets.token_hex(8)]}
    _write(_root(run), {**begun, "inputs": {}, "stages": {}, "artefacts": {}})


def fork(run: str | os.PathLike) -> None:
    """Marks a copy that was fetched from a mirror: it goes on apart from what it is a copy of."""
    amend(run, lineage=[*load(run).get("lineage", []), secrets.token_hex(8)])


def amend(run: str | os.PathLike, **facts: Any) -> None:
    """Adds or replaces facts about the run."""
    _write(_root(run), {**load(run), **facts})


def load(run: str | os.PathLike) -> Manifest:
    """Reads the manifest; a missing, damaged or malformed one raises `UserError`."""
    path = _root(run) / NAME
    try:
        return parse(read_bytes(path))
    except (OSError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise UserError(
            f"{path}: the manifest cannot be trusted ({reason}); restore it, for instance from its "
            f"copy {TWIN} beside it, or choose another --output-dir."
        ) from error


def record_inputs(run: str | os.PathLike, paths: Paths) -> None:
    """Records the SHA-256 of the files a run reads; raises `UserError` if one has changed since.

    Of a folder, all files beneath it are recorded. A path is recorded when it is first seen.
    """
    on_writer(lambda: _record_inputs(run, [Path(path) for path in paths]))


def _record_inputs(run: str | os.PathLike, paths: list[Path]) -> None:
    if missing := [str(path) for path in paths if not path.exists()]:
        raise UserError(f"{', '.join(missing)}: no such file or folder.")
    data = load(run)
    files = [file for path in paths for file in files_beneath(path)]
    hashes = {str(file): digest for file, digest in zip(files, sha256_all(files), strict=True)}
    known = data["inputs"]
    # A path that was not recorded before cannot have changed.
    changed = [path for path, digest in hashes.items() if known.get(path, digest) != digest]
    if changed:
        raise UserError(
            f"{_root(run)}: this run began with other contents of {', '.join(changed)}; restore "
            "what was there or choose another --output-dir."
        )
    # A run that is continued usually reads the same files, and then nothing is written.
    if not hashes.keys() <= known.keys():
        known.update(hashes)
        _write(_root(run), data)


def seal(run: str | os.PathLike, stage: str, paths: Paths, *, done: bool = True) -> None:
    """Registers `paths` (files or folders in the run) and their hashes as units of `stage`.

    `done=False` seals progress of a stage that is not complete yet. A sealed unit must not be
    written again before `reopen` or `redo`: a kill in between would make it look damaged.
    """
    wait_for_all(f"seal {stage}")  # no process may still be writing what is sealed
    on_writer(lambda: _seal(run, stage, paths, done))


def _seal(run: str | os.PathLike, stage: str, paths: Paths, done: bool) -> None:
    root, data = _root(run), load(run)
    units = [_relative(root, path) for path in paths]
    entry = data["stages"].setdefault(stage, {"done": False, "units": []})
    # A unit that is sealed again is replaced as a whole: a file that it lost must not stay listed.
    _unregister(data, stage, units)
    entry["units"] += units
    entry["done"] = done
    for unit in units:
        if not (root / unit).exists():
            raise FileNotFoundError(root / unit)
        # What the manifest promises must survive a power cut: the unit, and its name.
        sync_tree(root / unit)
        sync((root / unit).parent)
    files = [file for unit in units for file in files_beneath(root / unit)]
    for file, digest in zip(files, sha256_all(files), strict=True):
        size = file.stat().st_size
        data["artefacts"][_relative(root, file)] = {"sha256": digest, "bytes": size, "stage": stage}
    _note_versions(root, data)
    _write(root, data)


def _note_versions(root: Path, data: Manifest) -> None:
    """Reports and records that package versions changed since something was last sealed.

    This is done when something is sealed, because a command that is refused has made nothing.
    """
    now, last = versions(), data.get("resumed_with", [data["versions"]])[-1]
    if now == last:
        return
    changed = [
        f"{name} was {last.get(name, 'absent')} and is now {now.get(name, 'absent')}"
        for name in {**last, **now}
        if last.get(name) != now.get(name)
    ]
    print(f"{root}: resumed with other packages: {'; '.join(changed)}", file=sys.stderr)
    data["resumed_with"] = [*data.get("resumed_with", []), now]


def stage_done(run: str | os.PathLike, stage: str) -> bool:
    """Whether the stage was sealed as complete."""
    return load(run)["stages"].get(stage, {"done": False})["done"]


def sealed_units(run: str | os.PathLike, stage: str) -> list[Path]:
    """The stage's sealed units, oldest first."""
    return [_root(run) / unit for unit in load(run)["stages"].get(stage, {"units": []})["units"]]


def verify(run: str | os.PathLike, paths: Paths | None = None) -> None:
    """Compares files and folders of the run (all units if `paths` is None) with their hashes.

    Raises `UserError` that names every changed, missing and unknown file, the stage to redo, and
    the newest earlier unit that is intact.
    """
    root, data = _root(run), load(run)
    units = units_of(data)
    chosen = units if paths is None else [_relative(root, path) for path in paths]
    # The stage of every sealed unit and file, and of the folders around them.
    stage_of = {unit: name for name, entry in data["stages"].items() for unit in entry["units"]}
    for file, entry in data["artefacts"].items():
        stage_of |= dict.fromkeys(_lineage(file), entry["stage"])
    if unsealed := [path for path in chosen if path not in stage_of]:
        raise UserError(
            f"{root}: {', '.join(unsealed)} was never finished, so it is not used; run the stage "
            "that makes it first."
        )
    damage = _damage(root, data, chosen)
    if not damage:
        return
    # The earliest stage that is hit; an unknown file counts to its nearest sealed folder.
    hit = [next(stage_of[p] for p in _lineage(file) if p in stage_of) for file in damage]
    stage = min(hit, key=list(data["stages"]).index)
    places = {place for file in damage for place in _lineage(file)}
    # Units are in the order in which they were sealed, so the search goes back from the first
    # damaged one.
    first_hit = next((n for n, unit in enumerate(units) if unit in places), 0)
    earlier = reversed(units[:first_hit])
    intact = next((unit for unit in earlier if not _damage(root, data, [unit])), None)
    named = ", ".join(f"{file} ({finding})" for file, finding in sorted(damage.items()))
    raise UserError(
        f"{root}: not what was sealed: {named}. Nothing of it was used. Restore it (and remove "
        f"what is unknown), or run again with --redo {stage}, which sets it aside and makes it anew"
        + (f"; {intact}, sealed before it, is intact." if intact else ".")
    )


def reopen(run: str | os.PathLike, stage: str) -> None:
    """Marks a stage incomplete and unregisters its units, which may then be overwritten."""
    root, data = _root(run), load(run)
    if stage in data["stages"]:
        _unregister(data, stage, data["stages"][stage]["units"])
        data["stages"][stage]["done"] = False
        _write(root, data)


def redo(run: str | os.PathLike, stage: str) -> Path:
    """Marks a stage incomplete, removes all later stages, and returns where their units now are.

    Intact units of the stage stay. Its damaged units, and all units of later stages, are moved
    beneath `RUN/set-aside/` and never deleted.
    """
    root, data = _root(run), load(run)
    stages = data["stages"]
    if stage not in stages:
        known = ", ".join(stages) or "none yet"
        raise UserError(f"{root}: no stage named {stage!r} was sealed; sealed are: {known}.")
    later = list(stages)[list(stages).index(stage) + 1 :]
    moved = {name: stages[name]["units"] for name in later}
    moved[stage] = [unit for unit in stages[stage]["units"] if _damage(root, data, [unit])]
    aside = _new_aside(root)
    # Files are moved before the manifest is written: after a kill in between they are missing,
    # which is refused, while the other order would leave files that no stage knows.
    for unit in itertools.chain(*moved.values()):
        if (root / unit).exists():
            _move(root, unit, aside)
    for name, units in moved.items():
        _unregister(data, name, units)
    for name in later:
        del stages[name]
    stages[stage]["done"] = False
    _write(root, data)
    return aside


def set_aside(run: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Moves an unsealed file or folder that occupies the place of a unit; returns its new place."""
    root = _root(run)
    return _move(root, _relative(root, path), _new_aside(root))


def set_all_aside(run: str | os.PathLike, keep: Collection[str]) -> Path:
    """Moves everything in the run except what to `keep`, the manifest last; returns where to."""
    root = _root(run)
    aside = _new_aside(root)
    # A kill before the end leaves a run with its manifest, of which the rest is moved next time.
    last = (TWIN, NAME)
    names = [entry.name for entry in root.iterdir() if entry.name not in (SET_ASIDE, *keep, *last)]
    for name in (*names, *(name for name in last if (root / name).exists())):
        _move(root, name, aside)
    return aside


def _new_aside(root: Path) -> Path:
    folders = (root / SET_ASIDE / f"{number:03d}" for number in itertools.count())
    return next(folder for folder in folders if not folder.exists())


def _move(root: Path, unit: str, aside: Path) -> Path:
    old, new = root / unit, aside / unit
    with explained(new):
        make_folder(new.parent)
        shutil.move(old, new)  # a copy, where a folder of the run is a link to another disk
    # Before the manifest forgets the unit: a power cut that undoes the move would leave it as a
    # file that no stage knows.
    sync_tree(new)
    sync(new.parent)
    sync(old.parent)
    return new


def _damage(root: Path, data: Manifest, paths: Collection[str]) -> dict[str, str]:
    """What is wrong with each file at or beneath `paths` that differs from its registration."""
    chosen = set(paths)
    sealed = {file: e for file, e in data["artefacts"].items() if within(file, chosen)}
    found = {_relative(root, file): file for path in paths for file in files_beneath(root / path)}
    damage = dict.fromkeys(sealed.keys() - found.keys(), "missing")
    damage |= dict.fromkeys(found.keys() - sealed.keys(), "unknown")
    # Sizes are compared first, because a file of another size needs no hash.
    same_size = []
    for file in sealed.keys() & found.keys():
        size, expected = found[file].stat().st_size, sealed[file]["bytes"]
        if size == expected:
            same_size.append(file)
        else:
            damage[file] = f"{size} bytes instead of {expected}"
    hashes = sha256_all([found[file] for file in same_size])
    changed = [f for f, h in zip(same_size, hashes, strict=True) if h != sealed[f]["sha256"]]
    return damage | dict.fromkeys(changed, "content changed")


def _unregister(data: Manifest, stage: str, units: Iterable[str]) -> None:
    gone, entry = set(units), data["stages"][stage]
    entry["units"] = [unit for unit in entry["units"] if unit not in gone]
    kept = {file: e for file, e in data["artefacts"].items() if not within(file, gone)}
    data["artefacts"] = kept


def units_of(data: Manifest) -> list[str]:
    """The sealed units of all stages, in the order in which they were sealed."""
    return [unit for entry in data["stages"].values() for unit in entry["units"]]


def only(data: Manifest, files: Collection[str]) -> bytes:
    """The manifest of the same run with the units alone that consist of these files.

    Their stages are not done, so that a run with this manifest makes the other units again.
    """
    rest = {**data, "stages": {name: dict(entry) for name, entry in data["stages"].items()}}
    lacking = [file for file in data["artefacts"] if file not in files]
    for stage, entry in rest["stages"].items():
        units = {unit for unit in entry["units"] if any(within(f, [unit]) for f in lacking)}
        if units:
            _unregister(rest, stage, units)
            entry["done"] = False
    return selfsealed.encode(rest)


def within(file: str, paths: Collection[str]) -> bool:
    """Whether `file` is one of `paths` or lies beneath one."""
    return any(place in paths for place in _lineage(file))


def _lineage(file: str) -> Iterator[str]:
    """The path itself, then the folders around it, innermost first."""
    while file:
        yield file
        file = file.rpartition("/")[0]


def _root(run: str | os.PathLike) -> Path:
    return Path(os.path.abspath(run))


def _relative(root: Path, path: str | os.PathLike) -> str:
    # Not resolve(): a folder of the run may be a link to another disk.
    return Path(os.path.abspath(root / path)).relative_to(root).as_posix()


def _write(root: Path, data: Manifest) -> None:
    # By this number an old copy of a run is told from one that has gone on.
    raw = selfsealed.encode({**data, "writes": data.get("writes", 0) + 1})
    # The copy comes second: after a kill between the two writes it holds the state before, intact.
    write_bytes(root / NAME, raw)
    write_bytes(root / TWIN, raw)
