"""SHA-256 of files, and of everything that a cached result depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from malt_jax.regular_files import open_regular


def files_beneath(path: Path) -> Iterator[Path]:
    """The file itself, or every file beneath the folder in a stable order; none if missing."""
    if path.is_file():
        yield path
    for parent, folders, files in os.walk(path):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(files))


def sha256_all(files: Sequence[Path]) -> list[str]:
    """The hexadecimal SHA-256 of each file, computed in parallel (hashlib releases the GIL)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_sha256, files))


def fingerprint(paths: Sequence[str | os.PathLike] = (), data: Any = None) -> str:
    """One SHA-256 over files and folders (contents, and names within a folder) and JSON data.

    It serves as the key of a cached result: name all inputs, and a change of any of them is a miss.
    """
    content = []
    for path in map(Path, paths):
        files = list(files_beneath(path))
        if not files:
            raise FileNotFoundError(path)
        names = [file.relative_to(path).as_posix() for file in files]
        content.append(list(zip(names, sha256_all(files), strict=True)))
    return hashlib.sha256(json.dumps([content, data], sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # reads in chunks, at any size
