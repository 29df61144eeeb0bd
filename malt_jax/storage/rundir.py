"""A run directory: where everything of one run lies, and the rules for opening it again.

This is the one place that knows the layout; other modules ask it for paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from malt_jax.errors import UserError
from malt_jax.storage import lock, manifest, mirror
from malt_jax.storage.atomic import (
    clean_leftovers,
    explained,
    leftover_of,
    make_folder,
    read_bytes,
    remove,
    write_bytes,
)
from malt_jax.storage.provenance import git_commit, versions
from malt_jax.storage.writers import first, writes

_ABSENT = object()


class RunDir:
    """One run on disk. Use it as a context manager: leaving it lets another process write."""

    def __init__(self, path: Path, held: lock.RunLock | None, made: Sequence[Path] = ()):
        """`made`: config.yaml and the folders, innermost first, that were not there before."""
        self.path, self._lock, self._made = path, held, made

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        config: dict[str, Any],
        command: str,
        *,
        free: Collection[str] = (),
        facts: dict[str, Any] | None = None,
        mirror: str | None = None,
        inside: RunDir | None = None,
    ) -> RunDir:
        """Creates the run, or goes on with it, as its only writer.

        `config` is plain data. On a run that exists it must equal the config it was made with,
        but for the dotted fields in `free` (and all below them), which cannot change a result
        (config.yaml keeps their first value).
        `facts` (devices, model, revision) go into the first manifest. A run that is not there but
        in the `mirror` is fetched from it. A folder in another run is refused, because that run
        would take it for damage, unless it keeps a place for it and is named (`inside`). Raises
        `UserError` for a folder that is not a run, a run that is being written, or a config that
        differs.
        """
        path = Path(os.path.abspath(path))
        opened: list[RunDir] = []
        first(lambda: opened.append(cls._open(path, config, command, free, facts, mirror, inside)))
        return opened[0] if opened else cls.existing(path)

    @classmethod
    def _open(
        cls,
        path: Path,
        config: dict[str, Any],
        command: str,
        free: Collection[str],
        facts: dict[str, Any] | None,
        url: str | None,
        inside: RunDir | None,
    ) -> RunDir:
        text = _to_yaml(config)
        with explained(path):
            _refuse_foreign(path, text, url, inside)
            if url:
                mirror.refuse_overlap(url, path)
            made = [] if (path / "config.yaml").exists() else [path / "config.yaml"]
            made += make_folder(path)
            held = lock.RunLock(path, command)
            try:
                _refuse_foreign(path, text, url, inside)  # again: now nobody else can write
                if url and not (path / manifest.NAME).exists():
                    _fetch(url, path, config, free)
                remove(path / mirror.BEGUN)
                clean_leftovers(path)
                if (path / manifest.NAME).exists():
                    _refuse_other_config(path, config, free)
                else:
                    write_bytes(path / "config.yaml", text)
                    digest = hashlib.sha256(text).hexdigest()
                    known = {"command": command, "git_commit": git_commit(), **(facts or {})}
                    known |= {"versions": versions(), "config_sha256": digest}
                    manifest.create(path, known)
            except BaseException as error:
                run = cls(path, held, made)
                if isinstance(error, UserError) and not (path / manifest.NAME).exists():
                    run.withdraw()
                run.close()
                raise
        return cls(path, held, made)

    @classmethod
    def check(
        cls, path: str | os.PathLike, config: dict[str, Any], *, free: Collection[str] = ()
    ) -> None:
        """Raises what `open` would for this folder and config, and writes nothing."""
        path = Path(os.path.abspath(path))
        with explained(path):
            _refuse_foreign(path, _to_yaml(config))
            if (path / manifest.NAME).exists():
                _refuse_other_config(path, config, free)

    @classmethod
    def existing(cls, path: str | os.PathLike) -> RunDir:
        """A finished or running run, to read from; takes no lock and writes nothing."""
        path = Path(os.path.abspath(path))
        if not os.path.exists(path / manifest.NAME):  # False, too, for names no system can hold
            raise UserError(f"{path}: not a run directory: it has no {manifest.NAME}.")
        manifest.load(path)
        return cls(path, None)

    def close(self) -> None:
        if self._lock:
            self._lock.release()

    def withdraw(self) -> None:
        """Removes a run that holds nothing yet, so that refused input leaves nothing behind.

        Of its folders only those go that were made for it.
        """
        if not writes():
            return
        # In this order, because a config.yaml alone is a run whose creation was cut short.
        ours = (manifest.TWIN, manifest.NAME, lock.NAME)
        if {entry.name for entry in self.path.iterdir()} <= {*ours, "config.yaml"}:
            for name in ours:
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else has begun to use a folder
                for path in self._made:
                    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config the run was made with."""
        return _read_config(self.path)

    def trees(self, round: int) -> Path:
        """Folder of append-only shards, one record a question."""
        return self.path / "rounds" / f"{round:03d}" / "trees"

    def data(self, round: int, role: str) -> Path:
        """Folder of `sft.jsonl` and `dpo.jsonl`."""
        return self.path / "rounds" / f"{round:03d}" / "data" / _name(role)

    def checkpoint(self, round: int, role: str) -> Path:
        return self.path / "checkpoints" / f"{round:03d}" / _name(role)

    def eval(self, system: str) -> Path:
        """Shard of one record a question and draw."""
        return self.path / "eval" / f"{_name(system)}.jsonl"

    def export(self, role: str) -> Path:
        return self.path / "export" / _name(role)

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def results_table(self) -> Path:
        return self.path / "results.md"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"


def run_around(path: str | os.PathLike) -> Path | None:
    """The run directory in which a path lies, or None."""
    folders = Path(os.path.realpath(path)).parents
    # By the twin, because many a program has a manifest.json.
    return next((folder for folder in folders if os.path.exists(folder / manifest.TWIN)), None)


def differences(old: dict[str, Any], new: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """One phrase for each dotted field that differs, with both values."""
    before, after = _flatten(old), _flatten(new)
    return [
        f"{field} was {_shown(before, field)} and is now {_shown(after, field)}"
        for field in {**before, **after}
        if before.get(field, _ABSENT) != after.get(field, _ABSENT)
        and not any(field == name or field.startswith(name + ".") for name in free)
    ]


def _refuse_other_config(path: Path, config: dict[str, Any], free: Collection[str]) -> None:
    # Through YAML and back, so that a tuple equals the list it was saved as.
    found = differences(_read_config(path), yaml.safe_load(_to_yaml(config)), free)
    if found:
        raise UserError(
            f"{path}: made with another config: {'; '.join(found)}. Give the same config to go on "
            "with it, or choose another --output-dir."
        )


def _fetch(url: str, path: Path, config: dict[str, Any], free: Collection[str]) -> None:
    """Makes the run directory of its mirror, where one is."""
    there = mirror.config(url)
    if there is None:
        return
    mirrored = _parse_config(*there, f"mirror: the config.yaml of {url}", "mirror")
    if found := differences(mirrored, yaml.safe_load(_to_yaml(config)), free):
        raise UserError(
            f"mirror: {url} holds a run made with another config: {'; '.join(found)}. Give the "
            "same config to go on with it, or choose another mirror."
        )
    mirror.pull(url, path)


def _refuse_foreign(
    path: Path, config: bytes, url: str | None = None, inside: RunDir | None = None
) -> None:
    """Refuses a path that is neither free, nor a run, nor a run whose creation was cut short."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: no file system can hold this name; choose another --output-dir."
        ) from None
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose a folder as --output-dir.")
    if (path / manifest.NAME).exists():
        manifest.load(path)  # before a lock is put beside what may be another program's
        return
    around = run_around(path)
    if around and not (inside and inside.path.samefile(around)):
        raise UserError(
            f"{path}: lies in the run directory {around}, which would take it for damage; choose "
            "an --output-dir outside of it."
        )
    if url and (path / mirror.BEGUN).exists():
        return
    if (path / manifest.TWIN).exists():
        manifest.load(path)  # says that the manifest is missing and where its twin is
    for entry in path.iterdir() if path.exists() else ():
        if not _of_a_creation(entry, config):
            raise UserError(
                f"{path}: not a run directory (no {manifest.NAME}) and not empty: it holds "
                f"{entry.name!r}. Choose another --output-dir."
            )


def _of_a_creation(entry: Path, config: bytes) -> bool:
    """Whether a run's creation writes this file, before there is a manifest."""
    if entry.name == lock.NAME:
        return lock.is_lock(entry)
    if entry.name == "config.yaml":
        return read_bytes(entry) == config
    return leftover_of(entry.name) in ("config.yaml", manifest.NAME) and not entry.is_dir()


def _read_config(path: Path) -> dict[str, Any]:
    expected = manifest.load(path)["config_sha256"]
    file = path / "config.yaml"
    raw = read_bytes(file) if file.exists() else b""
    return _parse_config(raw, expected, str(file), "--output-dir")


def _parse_config(raw: bytes, expected: str, place: str, field: str) -> dict[str, Any]:
    """The config a run was made with, whose SHA-256 its manifest holds."""
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        whole = hashlib.sha256(raw).hexdigest() == expected
        if whole and isinstance(config := yaml.safe_load(raw), dict):
            return config
    raise UserError(
        f"{place}: missing or not what the run was made with; restore it or choose another {field}."
    )


def _to_yaml(config: dict[str, Any]) -> bytes:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def _flatten(tree: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; an item of a list of sections is named by its index (`roles.0.x`)."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(fields: dict[str, Any], field: str) -> str:
    text = repr(fields[field]) if field in fields else "absent"
    return text if len(text) <= 80 else text[:79] + "…"


def _name(name: str) -> str:
    """A role's or system's name as one harmless path component."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,99}", name):
        raise UserError(
            f"{name!r}: cannot name a folder; allowed are letters, digits and @ . _ + -, at most "
            "100, beginning with a letter or digit."
        )
    return name
