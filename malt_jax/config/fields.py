"""What a dataclass declares about its fields: type, default and help text.

A field is declared once, in its dataclass. The docstring under it is its help text on the command
line, in `malt fields`, in shell completion and in the files that `malt init` writes.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KINDS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}
"""What help prints for a value of a type."""


@dataclass(frozen=True)
class Field:
    """A field with a value of its own, as opposed to a section of the config."""

    path: str
    """Dotted; `N` stands for the index of an entry of a list."""
    kind: str
    """What values look like, for help."""
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.path.replace("_", "-")

    @property
    def in_list(self) -> bool:
        """Whether the field belongs to the entries of a list."""
        return ".N." in self.path


def list_fields(cls: type, instance: Any = None, prefix: str = "") -> Iterator[Field]:
    """All fields below a dataclass in the order of their declaration."""
    # The instance holds the defaults; a class with a required field has none to show.
    instance = instance or _instance_of_defaults(cls)
    docs = field_docs(cls)
    for name, hint in field_types(cls).items():
        path, value = f"{prefix}{name}", getattr(instance, name, None)
        args = typing.get_args(hint)
        # A dataclass is a section, and a tuple of dataclasses a list of sections, shown once as N.
        if dataclasses.is_dataclass(hint):
            yield from list_fields(typing.cast(type, hint), value, f"{path}.")
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(args[0]):
            yield from list_fields(typing.cast(type, args[0]), None, f"{path}.N.")
        else:
            yield Field(path, _kind(hint), value, " ".join(docs.get(name, "").split()))


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, read from its source."""
    # `cleandoc` removes the indentation of a nested class, but not that of a first line; the line
    # break in front makes the class the second one.
    (node,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    docs: dict[str, str] = {}
    # Neighbours in the class body: a field, and the text right below it.
    for field, doc in zip(node.body, node.body[1:], strict=False):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                docs[name] = inspect.cleandoc(str(text))
    return docs


def without_none(hint: Any) -> Any:
    """`T` of an optional type `T | None`; any other type as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _kind(hint: Any) -> str:
    hint = without_none(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "A,B,..."
    return KINDS.get(hint, "{NAME: VALUE}")


def _instance_of_defaults(cls: type) -> Any:
    """An instance of a dataclass with all defaults, or None if a field has no default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(cls)
    required = any(f.default is missing and f.default_factory is missing for f in fields)
    return None if required else cls()
