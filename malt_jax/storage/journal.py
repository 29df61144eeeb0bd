"""The journal of one stage: recovers, appends and seals its files, stops safely, records cost.

    with session.journal("search/000") as journal:
        for block in journal.blocks(questions, 256, files):
            block.append(path, records)

A stage states what it makes and the journal makes it safe. Everything a stage has made is sealed
when its `with` block ends; a block of questions is sealed as soon as it is written, so a kill costs
at most one block. A stage that was finished before has nothing to do: `journal.done` is true and
`journal.blocks` yields nothing. A stop request takes effect between two blocks, after sealing, or
earlier where the stage asks for it (`raise_if_stopped`); the block in progress is then made again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from malt_jax.errors import UserError
from malt_jax.memory import release_freed
from malt_jax.storage import manifest
from malt_jax.storage.atomic import write_bytes, write_json, write_text
from malt_jax.storage.jsonl import append_lines, encode, read_json, read_lines, recover
from malt_jax.storage.rundir import RunDir
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import is_writer, on_writer, wait_for_all

Meter = Callable[[], Callable[[], dict[str, Any]]]
"""Starts a measurement and returns a function that gives the figures since that moment."""
Key = tuple[Any, ...]


class Progress(Protocol):
    """Where a stage says how far it is."""

    def note(self, text: str) -> None: ...

    def update(self, stage: str, done: int, total: int, **figures: Any) -> None: ...


@dataclass
class Block:
    """Some items of a stage that are worked on and written together."""

    items: Sequence[Any]
    key: Sequence[str]
    missing: dict[Path, set[Key]]
    """Keys of the records that each file still lacks."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What the progress line shows after this block."""
    cost: dict[str, Any] = field(default_factory=dict)
    """What the block cost besides its seconds."""

    def append(self, path: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends the records that the file lacks.

        A block that was cut short is computed again as a whole, because only the same batches give
        the same bytes; records already written stay.
        """
        keyed = ((tuple(record[name] for name in self.key), record) for record in records)
        append_lines(path, [dict(record) for key, record in keyed if key in self.missing[path]])


class Journal:
    """A stage of a run at work. Use it as a context manager."""

    def __init__(
        self,
        run: RunDir,
        stage: str,
        progress: Progress,
        *,
        meter: Meter | None = None,
        finishes: bool = True,
    ):
        """`finishes`: whether the end of the `with` block is the end of the stage."""
        self.run, self.stage = run, stage
        self._progress = progress
        self._meter, self._finishes = meter, finishes
        self._units: list[Path] = []
        self._cost: dict[str, Any] | None = None
        self._open = False
        # A stop that came between two stages takes effect before the next one begins.
        raise_if_stopped()
        self.done = manifest.stage_done(run, stage)
        if self.done:
            # The files of a finished stage are hashed again, because later stages are about to read
            # them.
            units = manifest.sealed_units(run, stage)
            manifest.verify(run, units)
            if units:  # a phase without data is sealed empty
                progress.note(f"{stage}: done before")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        # An exception seals nothing.
        if kind is None and not self.done and not self._open:
            if self._cost is not None:
                self._units.append(self._write_cost())
            self._seal(self._units, done=self._finishes)

    # What a stage makes at once

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Writes a file that is sealed with the stage."""
        write_bytes(path, data)
        self._units.append(path)

    def write_lines(self, path: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes a file of JSON lines that is sealed with the stage."""
        self.write_bytes(path, b"".join(encode(dict(record)) for record in records))

    def write_json(self, path: Path, value: Any) -> None:
        """Writes a JSON file that is sealed with the stage."""
        write_json(path, value)
        self._units.append(path)

    def write_text(self, path: Path, text: str) -> None:
        """Writes a text file that is sealed with the stage."""
        write_text(path, text)
        self._units.append(path)

    def add(self, *paths: Path) -> None:
        """Registers files or folders that the stage has written itself; they are sealed with it."""
        self._units += paths

    def leave_open(self) -> None:
        """Seals nothing at the end, so that the stage is done again the next time."""
        self._open = True

    def record_cost(self, **figures: Any) -> None:
        """Records what the stage cost in this process; what a killed process spent is not in it."""
        self._cost = {**(self._cost or {}), **figures}

    # What a stage makes piece by piece

    def blocks(
        self,
        items: Sequence[Any],
        size: int,
        files: Callable[[int, Sequence[Any]], Mapping[Path, set[Key]]],
        *,
        key: Sequence[str] = ("question_id",),
        sealed_apart: bool = True,
    ) -> Iterator[Block]:
        """The blocks of items that still have work, each written by the caller before the next.

        `files(number, items)` says which records block `number` has in which file, by the values
        of their fields `key`. Files are sealed block by block, or with `sealed_apart` false, where
        all blocks append to the same files, after the last one.
        """
        if self.done:
            return
        # 1. List the files of every block and the records that each must hold.
        sealed = set(manifest.sealed_units(self.run, self.stage))
        expected = [
            files(number, items[start : start + size])
            for number, start in enumerate(range(0, len(items), size))
        ]
        paths = list(dict.fromkeys(path for block in expected for path in block))
        unsealed = [path for path in paths if path not in sealed]
        # 2. Check the sealed files against their hashes, and cut a torn line off the others.
        manifest.verify(self.run, [path for path in paths if path in sealed])
        if sealed_apart:
            self._refuse_others(sealed, expected)
        # The cost is sealed after the last block, so nothing is left to do once it is.
        if not unsealed and self._cost_path in sealed:
            return
        for path in unsealed:
            recover(path)
        # No process may read a file before process 0 has cut off its torn last line.
        wait_for_all("shards recovered")
        # 3. Work on the blocks that lack a record; files that are sealed are not touched.
        written: dict[Path, set[Key]] = {}
        costs = self.block_costs(self.run, self.stage)
        figures = self._meter() if self._meter else dict
        began = time.perf_counter()
        for number, wanted in enumerate(expected):
            if set(wanted) <= sealed:
                continue
            start = number * size
            some = items[start : start + size]
            # Each file is read once, when the first block needs it.
            for path in wanted.keys() - written.keys():
                written[path] = _keys(path, key)
            block = Block(some, key, {path: keys - written[path] for path, keys in wanted.items()})
            if any(block.missing.values()):
                at = time.perf_counter()
                yield block
                # The caller has written the block when it asks for the next one and the loop
                # continues here.
                seconds = time.perf_counter() - at
                costs[str(start)] = {"seconds": seconds, **block.cost, "questions": len(some)}
            if sealed_apart:
                self._seal(list(wanted))
            else:
                write_json(self.block_costs_path(self.run, self.stage), costs)
            done = min(start + len(some), len(items))
            self._progress.update(self.stage, done, len(items), **block.figures)
            # The block is on the disk here, so that a stop loses no work.
            raise_if_stopped()
        if sealed_apart:
            self.record_cost(**{**figures(), "seconds": time.perf_counter() - began})
            return
        # Blocks of earlier processes count as well, so that seconds per question are right. The
        # cost is sealed here, because what the stage does next may read it.
        total = sum(cost["seconds"] for cost in costs.values())
        self.record_cost(**{**figures(), "seconds": total})
        self._seal([*unsealed, self.block_costs_path(self.run, self.stage), self._write_cost()])

    def _refuse_others(
        self, sealed: set[Path], expected: Sequence[Mapping[Path, set[Key]]]
    ) -> None:
        """Refuses sealed files that are not of these blocks, such as those of a joined search."""
        sizes: Counter[Path] = Counter()
        for block in expected:
            sizes.update({path: len(keys) for path, keys in block.items()})
        for path in (path for path in sealed if path.suffix == ".jsonl"):
            with open(path, "rb") as file:
                lines = sum(1 for _ in file)
            if lines != sizes[path]:
                raise UserError(
                    f"{path}: was joined or imported, and {self.stage} would add trees of its own; "
                    "restore what was taken with it, or choose another --output-dir."
                )

    def pending(self, pieces: Mapping[str, Path], *, folders: bool) -> Iterator[tuple[str, Path]]:
        """The named files or `folders` that are not sealed yet; each is sealed after its turn.

        What is in the place of one and was never sealed is moved aside first, except a file
        that the stage writes itself, which is overwritten.
        """
        sealed = set() if self.done else set(manifest.sealed_units(self.run, self.stage))
        for name, path in () if self.done else pieces.items():
            if path in sealed:
                continue
            if is_writer() and path.exists() and (folders or path.is_dir()):
                kept = manifest.set_aside(self.run, path)
                self._progress.note(f"{path}: what was here is in {kept} now")
            yield name, path
            self._seal([path])
            # The path is sealed already and must not be sealed again at the end of the stage.
            self._units = [unit for unit in self._units if unit != path]
            raise_if_stopped()

    @staticmethod
    def block_costs_path(run: RunDir, stage: str) -> Path:
        return run.path / "cost" / f"{stage.replace('/', '-')}-blocks.json"

    @classmethod
    def block_costs(cls, run: RunDir, stage: str) -> dict[str, Any]:
        """What each finished block cost, by the number of its first item."""
        remedy = "restore it or remove it: the questions answered so far then count no seconds"
        return read_json(cls.block_costs_path(run, stage), remedy) or {}

    @property
    def _cost_path(self) -> Path:
        return self.run.path / "cost" / f"{self.stage.replace('/', '-')}.json"

    def _write_cost(self) -> Path:
        write_json(self._cost_path, self._cost)
        # So the end of the `with` block does not write it a second time.
        self._cost = None
        return self._cost_path

    def _seal(self, units: Sequence[Path], done: bool = False) -> None:
        """Registers what is finished in the manifest, and has it copied to the mirror."""
        manifest.seal(self.run, self.stage, units, done=done)
        on_writer(self.run.copy_sealed)
        release_freed()


def _keys(path: Path, key: Sequence[str]) -> set[Key]:
    """Keys of the records that a file holds."""
    if not path.exists():
        return set()
    return {tuple(record[name] for name in key) for record in read_lines(path)}
