"""From YAML and dotted flags to frozen dataclasses, with errors that name the field.

This is how `config.Config` is read and written; nothing here knows what the fields mean. A field is
declared once, in its dataclass: its type says what is allowed, the docstring under it is its help.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import os
import re
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import yaml

from malt_jax.checks import show, whole_number
from malt_jax.errors import UserError

T = TypeVar("T")

MAX_BYTES = 1_000_000
"""Of a config file; PyYAML takes some ten seconds for each."""
ONE_TEXT = {"one_text": True}
"""Metadata of a field that lists texts with commas in them: a lone text is one of them."""


class Flag(str):
    """A flag's value as it was typed; what it means, the type of its field says."""


def build(cls: type[T], data: Any, where: str = "") -> T:
    """An instance of the dataclass `cls` from nested mappings; missing fields take their default.

    `where` is the dotted path of `data`, used in messages. Raises UserError for an unknown field,
    a missing one that has no default, or a value its type or its range check does not allow.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or 'config'}: expected a mapping of fields, found {show(data)}.")
    hints = field_types(cls)
    for key in data:
        if key not in hints:
            raise UserError(_unknown(_join(where, str(key)), str(key), hints))
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        path = _join(where, field.name)
        if field.name in data:
            value = data[field.name]
            if field.metadata.get("one_text") and isinstance(value, str):
                read = _scalar(value) if isinstance(value, Flag) else None
                value = read if isinstance(read, list) else [str(value)]
            values[field.name] = _convert(hints[field.name], value, path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}: missing; give it in the config file or as --{_flag(path)}.")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}.{error}" if where else str(error)) from None


def to_dict(value: Any) -> Any:
    """Plain mappings, lists and scalars, as written to `config.yaml`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    return value


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; UserError names the file and line of what is wrong."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path}: cannot be read (a pipe or a device); give a file.")
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes, which no config is.")
        data = yaml.load(text.decode("utf-8-sig"), Loader=Loader)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give --config FILE.yaml, or --config "
            "quickstart for the one in the package."
        ) from None
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({_first_line(error)}).") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a config.") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise UserError(f"{path}{line}: not valid YAML ({problem}).") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of config fields, found {show(data)}.")
    return data


def apply_flags(data: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """`--a.b VALUE` or `--a.b=VALUE` laid over nested mappings; `build` reads the values.

    A field of text takes its value as it stands, every other one reads it as YAML. Dashes in flag
    names stand for underscores; a number selects an entry of a list
    (`--pipeline.roles.0.branch 5`). A bare boolean flag (`--quiet`) means true.
    """
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise UserError(f"{flag}: unexpected argument; fields are given as --a.b VALUE.")
        name, separator, text = flag[2:].partition("=")
        if not separator:
            bare = not rest or (rest[0].startswith("--") and len(rest[0]) > 2)
            data = assign(data, name, True if bare else Flag(rest.pop(0)))
        else:
            data = assign(data, name, Flag(text))
    return data


def assign(data: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """Nested mappings with one dotted field set; the given ones are not changed."""
    data = _copy(data)
    _set(data, field.replace("-", "_").split("."), value, field)
    return data


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted path, value) of nested mappings and lists, in order."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, _join(where, str(key)))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, _join(where, str(index)))
    else:
        yield where, value


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, which is its help text."""
    (node,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body
    docs: dict[str, str] = {}
    for field, doc in zip(node.body, node.body[1:], strict=False):  # type: ignore[attr-defined]
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
        ):
            docs[field.target.id] = inspect.cleandoc(str(doc.value.value))
    return docs


MAX_VALUES = 100_000
"""Of a config file with its aliases written out."""


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for; infinite where an alias lies in what it stands for."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted
        below: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            below = itertools.chain.from_iterable(node.value)
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        known[id(node)] = 1 + sum(_expanded(child, known) for child in below)
    return known[id(node)]


class Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number and refuses a key given twice and endless aliases."""

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:  # PyYAML lets errors of any kind out of a value like `!!int ''`
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"a value that is no {kind}", node.start_mark
            ) from None

    def construct_document(self, node):
        if _expanded(node, {}) > MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases stand for over {MAX_VALUES:,} values", node.start_mark
            )
        return super().construct_document(node)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key!r} stands twice or is not a name",
                    key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if isinstance(value, Flag):
        value = _from_flag(hint, value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [arg for arg in args if arg is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, path)
            except UserError:
                continue
        return _convert(options[-1], value, path)
    if origin is typing.Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), map(str, args), n=1)
            hint_text = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{path}: found {show(value)}, allowed: {', '.join(map(str, args))}.{hint_text}"
            )
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    if origin is tuple:
        if isinstance(value, str):  # a flag: --eval.systems sa,malt
            value = [item for item in value.split(",") if item]
            if args[0] is not str:
                value = [_scalar(item) for item in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, list | tuple):
            raise UserError(f"{path}: expected a list, found {show(value)}.")
        return tuple(_convert(args[0], item, f"{path}.{i}") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{path}: expected a mapping, found {show(value)}.")
        return {
            _convert(str, str(k), path): _convert(args[1], v, f"{path}.{k}")
            for k, v in value.items()
        }
    if hint is Any:
        return _read_flags(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise UserError(f"{path}: expected {names.get(hint, hint)}, found {show(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: expected a finite number, found {value}.")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise UserError(f"{path}: expected a 64-bit whole number, found {show(value)}.")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{path}: the text holds a NUL character.")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise UserError(f"{path}: the text {show(value)} is not UTF-8 (it holds half a character).")
    return value


def _from_flag(hint: Any, flag: Flag) -> Any:
    """A flag's value for a field of this type: as typed where it may be text, else read as YAML."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    if str in options or typing.get_origin(hint) is typing.Literal:
        return None if flag == "null" and type(None) in options else str(flag)
    if typing.get_origin(hint) is tuple and not flag.startswith("["):
        return str(flag)
    return _scalar(flag)


def _read_flags(value: Any) -> Any:
    """A value of any type, whose flags are read as YAML."""
    if isinstance(value, dict):
        return {key: _read_flags(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_flags(item) for item in value]
    return _scalar(value) if isinstance(value, Flag) else value


def _scalar(text: str) -> Any:
    """What a flag's text means: a YAML value, or itself where it is none."""
    text = str(text)
    try:
        return yaml.load(text, Loader=Loader) if text.strip() else text
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _set(data: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    here: Any = data
    for part, following in zip(path, [*path[1:], None], strict=True):
        last = following is None
        if isinstance(here, list):
            index = whole_number(part)
            if index is None or index >= len(here):
                raise UserError(
                    f"--{name}: {show(part)} is not one of the {len(here)} entries there."
                )
            key: Any = index
        else:
            key = part
        if last:
            here[key] = value
            return
        if isinstance(here, dict) and isinstance(here.get(key), Flag):
            here[key] = _scalar(here[key])
        if isinstance(here, dict) and not isinstance(here.get(key), dict | list):
            here[key] = {}
        here = here[key]
        if not isinstance(here, dict | list):
            raise UserError(f"--{name}: {part!r} holds a value, not fields.")


def _unknown(path: str, key: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    return f"{path}: unknown field; allowed here: {', '.join(known)}.{suggestion}"


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _flag(path: str) -> str:
    return path.replace("_", "-")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
