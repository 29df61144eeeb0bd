"""The form of a manifest, checked whenever one is read.

Its seal only says that the file is intact, not who wrote it: a mirror, or a slice to be joined, may
be a stranger's. So every field that the code relies on is checked, and no path in it may lead out
of the run directory.
"""

from __future__ import annotations

from typing import Any

from malt_jax.storage import selfsealed

NAME, TWIN = "manifest.json", "manifest.copy.json"
SET_ASIDE, LOCK = "set-aside", ".lock"
FORMAT = 1
_NO_ARTEFACTS = {NAME, TWIN, SET_ASIDE, "config.yaml", LOCK}
"""Names in a run directory that no stage writes."""
_REQUIRED = {
    "versions": dict,
    "config_sha256": str,
    "inputs": dict,
    "stages": dict,
    "artefacts": dict,
}


def parse(raw: bytes) -> dict[str, Any]:
    """The manifest in these bytes; raises ValueError for a damaged or malformed one."""
    data = selfsealed.decode(raw)
    if data.get("format") != FORMAT:
        raise ValueError(f"its format is {data.get('format')!r}, and this version reads {FORMAT}")
    for field, kind in _REQUIRED.items():
        _require(isinstance(data.get(field), kind), field)
    # These fields are optional, but if they are present they must have this form.
    for field, kinds in {
        "model": {"path": str, "fingerprint": str},
        "questions": {"train": str, "eval": str},
    }.items():
        _require(data.get(field) is None or _has(data[field], **kinds), field)
    bases = data.get("bases", {})
    _require(
        isinstance(bases, dict) and all(_has(b, path=str, fingerprint=str) for b in bases.values()),
        "bases",
    )
    _require(type(data.get("writes", 0)) is int, "writes")
    lineage = data.get("lineage", [""])
    _require(isinstance(lineage, list) and lineage and all(map(_is_text, lineage)), "lineage")
    resumed = data.get("resumed_with", [{}])
    _require(isinstance(resumed, list) and resumed and all(map(_has, resumed)), "resumed_with")
    _require(all(_has(stage, done=bool, units=list) for stage in data["stages"].values()), "stages")
    # `verify` looks up the stage of every damaged file, so each entry must name a known stage.
    for entry in data["artefacts"].values():
        known = _has(entry, sha256=str, bytes=int, stage=str) and entry["stage"] in data["stages"]
        _require(known, "artefacts")
    units = [unit for stage in data["stages"].values() for unit in stage["units"]]
    for path in (*units, *data["artefacts"]):
        _require(isinstance(path, str), "stages")
        if not is_artefact(path):
            raise ValueError(f"its path {path!r} leaves the run directory or is not a stage's")
    return data


def _require(holds: object, field: str) -> None:
    if not holds:
        raise ValueError(f"its {field!r} is missing or malformed")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _has(entry: object, **kinds: type) -> bool:
    """Whether `entry` is a mapping with these fields of these types."""
    return isinstance(entry, dict) and all(isinstance(entry.get(k), t) for k, t in kinds.items())


def is_artefact(path: str) -> bool:
    """Whether it is a plain relative path of something that a stage may have written."""
    parts = path.split("/")  # an absolute path begins with an empty part
    return parts[0] not in _NO_ARTEFACTS and not {"", ".", ".."} & {*parts} and "\0" not in path
