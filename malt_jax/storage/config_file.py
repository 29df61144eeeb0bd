"""RUN/config.yaml: the config a run was made with, and how another config may differ from it.

Rule: a field that the saved config lacks, because it is newer than the run, has its default. So a
newer version continues the run as long as the new fields are left at their defaults.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import yaml

from malt_jax.config import strict_yaml
from malt_jax.errors import UserError

NAME = "config.yaml"
# A marker of its own, because None is a value that a field can have.
_ABSENT = object()


@dataclass(frozen=True)
class Request:
    """The config that a command asks for, to be compared with a run's saved one."""

    config: dict[str, Any]
    free: Collection[str] = ()
    """Dotted fields that may differ, with everything below them."""
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda saved: saved
    """Adds the defaults of the fields that a saved config lacks; UserError if it cannot be read."""

    def refuse_other(self, saved: dict[str, Any], run: str, choose: str) -> None:
        """Raises UserError that names each differing field, for a `run` saved with `saved`.

        `choose` names what the user can set to another place instead.
        """
        try:
            complete = self.complete(saved)
        except UserError as error:
            raise UserError(
                f"{run} made with a config that this version does not read: {error} Continue it "
                f"with the version in its manifest, or choose another {choose}."
            ) from None
        # Through YAML and back, so that a tuple equals the list as which it was saved.
        found = differences(complete, strict_yaml.load(to_yaml(self.config)), self.free)
        if found:
            raise UserError(
                f"{run} made with another config: {'; '.join(found)}. Give the same config to "
                f"continue it, or choose another {choose}."
            )


def differences(old: dict[str, Any], new: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """One phrase with both values for each dotted field that differs, except those in `free`."""
    return [
        f"{field} was {before} and is now {after}"
        for field, before, after in changed_fields(old, new, free)
    ]


def changed_fields(
    old: dict[str, Any], new: dict[str, Any], free: Collection[str] = ()
) -> list[tuple[str, str, str]]:
    """Each dotted field that differs with both of its values, except those in `free`."""
    before, after = _flatten(old), _flatten(new)
    return [
        (field, _shown(before, field), _shown(after, field))
        for field in {**before, **after}
        if before.get(field, _ABSENT) != after.get(field, _ABSENT)
        and not any(field == name or field.startswith(name + ".") for name in free)
    ]


def to_yaml(config: dict[str, Any]) -> bytes:
    return strict_yaml.dump(config).encode()


def parse(raw: bytes, sha256: str, place: str, choose: str) -> dict[str, Any]:
    """The config in these bytes; UserError unless they have the hash that the manifest holds."""
    # A wrong hash, broken YAML and YAML that is no mapping all end in the one sentence below.
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        intact = hashlib.sha256(raw).hexdigest() == sha256
        if intact and isinstance(config := strict_yaml.load(raw), dict):
            return config
    raise UserError(
        f"{place}: missing or not what the run was made with; restore it or choose another "
        f"{choose}."
    )


def _flatten(tree: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; an item of a list of sections is named by its index (`roles.0.x`)."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        # An empty section stays a leaf, so that one that became empty is seen to differ.
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(fields: dict[str, Any], field: str) -> str:
    text = repr(fields[field]) if field in fields else "absent"
    return text if len(text) <= 80 else text[:79] + "…"
