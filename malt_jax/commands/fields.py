"""`malt fields`: every field of the config with its type, default and help."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from malt_jax.commands.command import (
    Argument,
    Command,
    Invocation,
    nearest,
    row,
    screen_width,
)
from malt_jax.config.reading import field_docs, field_types
from malt_jax.errors import UserError


@dataclass(frozen=True)
class Field:
    """One leaf of the config. `path` is dotted; `N` stands for the number of a list's entry."""

    path: str
    kind: str
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.path.replace("_", "-")


def config_fields() -> list[Field]:
    """All fields in the order they are declared."""
    from malt_jax.config.run import Config

    return list(_walk(Config, Config(), ""))


def field_lines(names: Iterable[str], width: int) -> list[str]:
    """Help for the named fields, in two columns."""
    known = {field.path: field for field in config_fields()}
    return [line for name in names for line in _lines(known[name], width)]


def shown(value: Any) -> str:
    """A default as a user would type it; nothing for one whose help says what it means."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None or value == {} else str(value)


def run(invocation: Invocation) -> None:
    prefix = (invocation.options.prefix or "").lstrip("-").replace("-", "_")
    known = config_fields()
    chosen = [f for f in known if f.path == prefix or f.path.startswith(_dotted(prefix))]
    chosen = chosen or [f for f in known if prefix in f.path]
    if not chosen:
        words = dict.fromkeys(part for f in known for part in _prefixes(f.path) + f.path.split("."))
        raise UserError(
            f"fields: no field's name holds {prefix!r}.{nearest(prefix, words, cutoff=0.7)} "
            "`malt fields` lists all of them."
        )
    sections: dict[str, list[str]] = {}
    for field in chosen:
        sections.setdefault(_section(field), []).extend(_lines(field, screen_width()))
    print("\n\n".join("\n".join([name, *lines]) for name, lines in sections.items()))


COMMAND = Command(
    name="fields",
    summary="every field of the config, with its default and meaning",
    about="Fields stand in the YAML file (`search:` and, indented below it, `threshold: 0.5`) or "
    "on the command line (--search.threshold 0.5), where N is the number of a list's entry, "
    "from 0 (--pipeline.roles.0.branch 5). The command line wins.",
    run=run,
    arguments=(
        Argument("prefix", "Only these: a section, a field or a part of its name.", required=False),
    ),
    examples=("malt fields train.dpo", "malt fields learning_rate"),
)


def _walk(cls: type, instance: Any, prefix: str) -> Iterator[Field]:
    docs = field_docs(cls)
    for name, hint in field_types(cls).items():
        path, value = f"{prefix}{name}", getattr(instance, name, None)
        args = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from _walk(hint, value, f"{path}.")  # type: ignore[arg-type]
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(args[0]):
            yield from _walk(args[0], _plain(args[0]), f"{path}.N.")  # type: ignore[arg-type]
        else:
            yield Field(path, _kind(hint), value, " ".join(docs.get(name, "").split()))


def _plain(cls: type) -> Any:
    """An instance of the defaults; None for a class that has fields without any."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(cls)
    bare = any(f.default is missing and f.default_factory is missing for f in fields)
    return None if bare else cls()


def _kind(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(arg for arg in args if arg is not type(None)))
    if origin is typing.Literal:
        return "|".join(map(str, args))
    if origin is tuple:
        return "A,B,..."
    names = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}
    return names.get(hint, "{NAME: VALUE}")


def _lines(field: Field, width: int) -> list[str]:
    default = shown(field.default)
    text = field.help + (f" [{default}]" if default else "")
    return row(f"  {field.flag} {field.kind}", text, width)


def _section(field: Field) -> str:
    """What a field stands under; the fields of a list's entries stand with the list's own."""
    return field.path.rpartition(".")[0].replace(".N", "") or "the run as a whole"


def _dotted(prefix: str) -> str:
    return f"{prefix}." if prefix else ""


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]
