"""RUN/manifest.json: what a run was made with, and a SHA-256 of every file a stage has finished.

    {"format": 1, ...facts (versions, git_commit, devices, model),
     "inputs":    {path: sha256},                          what was read
     "stages":    {stage: {"done": true, "units": [...]}}, in the order of their first seal
     "artefacts": {path in the run: {"sha256", "bytes", "stage"}},
     "seal": sha256 of all the above}

Some facts are asked for: `versions` and `config_sha256`, and of `model` its fingerprint.

A *unit* is a file or folder sealed as a whole: a shard, a checkpoint, an export. `seal` writes the
manifest last and atomically, so that a unit either is covered or is work still owed. The manifest
guards itself with its own hash and has a twin, `manifest.copy.json`.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from malt_jax.errors import UserError
from malt_jax.storage import selfsealed
from malt_jax.storage.atomic import make_folder, read_bytes, sync_tree, write_bytes
from malt_jax.storage.hashing import files_beneath, sha256_all
from malt_jax.storage.provenance import versions
from malt_jax.storage.writers import first, meet

NAME, TWIN = "manifest.json", "manifest.copy.json"
SET_ASIDE = "set-aside"
FORMAT = 1
_NO_STAGES = {NAME, TWIN, SET_ASIDE, "config.yaml", ".lock"}
"""What lies in a run and no stage makes."""
Paths = Iterable[str | os.PathLike]


def create(run: str | os.PathLike, facts: dict[str, Any]) -> None:
    """Writes the first manifest of a run: the facts about it and no artefact yet."""
    _write(_root(run), {"format": FORMAT, **facts, "inputs": {}, "stages": {}, "artefacts": {}})


def amend(run: str | os.PathLike, **facts: Any) -> None:
    """Adds or replaces facts about the run."""
    _write(_root(run), {**load(run), **facts})


def load(run: str | os.PathLike) -> dict[str, Any]:
    """The manifest; a missing or damaged one is refused with `UserError`, never guessed."""
    path = _root(run) / NAME
    try:
        return parse(read_bytes(path))
    except (OSError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise UserError(
            f"{path}: the manifest cannot be trusted ({reason}); restore it, for instance from its "
            f"twin {TWIN} beside it, or choose another --output-dir."
        ) from error


def parse(raw: bytes) -> dict[str, Any]:
    """The manifest in these bytes; raises ValueError for what no `seal` has written.

    Its hash says that it is whole, not who wrote it: a mirror or a slice may be a stranger's.
    """
    data = selfsealed.decode(raw)
    if data.get("format") != FORMAT:
        raise ValueError(f"its format is {data.get('format')!r}, and this version reads {FORMAT}")
    for field, kind in _FIELDS.items():
        _require(isinstance(data.get(field), kind), field)
    model, asked = data.get("model"), data.get("questions")
    _require(model is None or _has(model, path=str, fingerprint=str), "model")
    _require(asked is None or _has(asked, train=str, eval=str), "questions")
    resumed = data.get("resumed_with", [{}])
    _require(resumed and isinstance(resumed, list), "resumed_with")
    _require(all(isinstance(one, dict) for one in resumed), "resumed_with")
    for stage in data["stages"].values():
        _require(_has(stage, done=bool, units=list), "stages")
    for entry in data["artefacts"].values():
        _require(_has(entry, sha256=str, bytes=int, stage=str), "artefacts")
        _require(entry["stage"] in data["stages"], "artefacts")
    for path in (*_units(data), *data["artefacts"]):
        _require(isinstance(path, str), "stages")
        if not _may_be_sealed(path):
            raise ValueError(f"its path {path!r} leaves the run directory or is not a stage's")
    return data


_FIELDS = {
    **{"versions": dict, "config_sha256": str},
    **{"inputs": dict, "stages": dict, "artefacts": dict},
}


def _require(holds: bool, field: str) -> None:
    if not holds:
        raise ValueError(f"its {field!r} is missing or malformed")


def _has(entry: object, **kinds: type) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(k), t) for k, t in kinds.items())


def _may_be_sealed(path: str) -> bool:
    """Whether it is the plain path of something beneath a run that a stage may have made."""
    parts = path.split("/")  # of an absolute path the first one is empty
    return parts[0] not in _NO_STAGES and not {"", ".", ".."} & {*parts} and "\0" not in path


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
    _note_versions(root, data)
    _write(root, data)


def _note_versions(root: Path, data: dict[str, Any]) -> None:
    """Says on stderr that packages changed since something was last sealed, and keeps the fact.

    Here, not when the run is opened: a command that is refused has made nothing with them.
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
    folders = (root / SET_ASIDE / f"{number:03d}" for number in itertools.count())
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
