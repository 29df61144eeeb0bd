"""Reads the JSON files of a checkpoint; what is wrong is refused by file and field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from malt_jax.checks import no_repeats, show
from malt_jax.errors import UserError

MAX_BYTES = 16 << 20
"""Largest JSON file of a checkpoint that is read as a whole."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no such file is.")
        # By default `json` keeps the last of two equal names, and which one counts would depend on
        # the reader. A byte order mark at the beginning is accepted.
        data = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=no_repeats)
    except OSError as error:
        raise UserError(f"{path}: could not be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def unreadable(path: Path, finding: str) -> UserError:
    """The refusal of a checkpoint's file that is not what its name says."""
    with open(path, "rb") as file:
        start = file.read(32)
    if start.startswith(b"version https://git-lfs"):
        return UserError(
            f"{path}: a Git LFS pointer, not the file itself; fetch the file with git lfs pull."
        )
    return UserError(f"{path}: {finding}; download the checkpoint again.")


class Fields:
    """Typed access to one JSON object; every refusal names file and field."""

    def __init__(self, path: Path, data: dict[str, Any], prefix: str = ""):
        self.path, self.data, self.prefix = path, data, prefix

    def refuse(self, key: str, finding: str) -> UserError:
        return UserError(f"{self.path}: {self.prefix}{key} {finding}.")

    def has(self, key: str) -> bool:
        # An absent key and null mean the same, except for `sliding_window` (see `hf_config`).
        return self.data.get(key) is not None

    def _value(self, key: str, default: Any) -> Any:
        value = self.data.get(key)
        value = default if value is None else value
        if value is None:
            raise self.refuse(key, "is missing")
        return value

    def integer(self, key: str, default: int | None = None, largest: int = 1 << 24) -> int:
        value = self._value(key, default)
        # In Python a bool is an int, so `true` would pass as 1.
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
            raise self.refuse(key, f"= {show(value)}: expected a whole number from 1 to {largest}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, f"= {show(value)}: expected a number")
        if not 0 < value < 1e30 or not math.isfinite(value):
            raise self.refuse(key, f"= {show(value)}: expected a positive, finite number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"= {show(value)}: expected true or false")
        return value

    def section(self, key: str) -> Fields:
        value = self.data.get(key)
        if not isinstance(value, dict):
            raise self.refuse(key, f"= {show(value)}: expected an object")
        return Fields(self.path, value, f"{self.prefix}{key}.")
