"""Builds frozen config dataclasses from nested mappings and dotted flags, and writes them back.

Nothing here knows what the fields mean: the type of a field says which values are allowed. Every
refusal is a UserError that names the field, what was found and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from malt_jax.checks import has_lone_surrogate, nearest, show, whole_number
from malt_jax.config.fields import field_types, without_none
from malt_jax.config.strict_yaml import read_value
from malt_jax.errors import UserError

T = TypeVar("T")

ONE_TEXT = {"one_text": True}
"""Field metadata: a lone text is one item of the list, however many commas it holds."""


class Flag(str):
    """The value of a flag as it was typed; the type of its field decides how it is read."""


def build(cls: type[T], data: Any, where: str = "") -> T:
    """An instance of the dataclass `cls` from nested mappings; missing fields take their default.

    `where` is the dotted path of `data`, used in messages. Raises UserError for an unknown field,
    for a missing one that has no default, and for a value that its type or range excludes.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or 'config'}: expected a mapping of fields, found {show(data)}.")
    hints = field_types(typing.cast(Any, cls))
    for key in map(str, data):
        if key not in hints:
            raise unknown_field(where, key, list(hints))
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        path = _join(where, field.name)
        if field.name in data:
            value = data[field.name]
            # A comma is part of such a text, so the text is not split.
            if field.metadata.get("one_text") and isinstance(value, str):
                listed = read_value(value) if isinstance(value, Flag) else None
                value = listed if isinstance(listed, list) else [str(value)]
            values[field.name] = _convert(hints[field.name], value, path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            flag = path.replace("_", "-")
            raise UserError(f"{path}: missing; give it in the config file or as --{flag}.")
    try:
        return cls(**values)
    except UserError as error:
        # The class's own check names the field; the path of the section is put in front of it.
        raise UserError(_join(where, str(error))) from None


def unknown_field(where: str, key: str, known: Sequence[str]) -> UserError:
    """The refusal of a field that a section lacks, with what was probably meant."""
    section, *below = key.split(".")
    mend = nearest(key, known)
    if below and section in known:
        # A flag and an ablation name fields so, a section does not.
        mend = f" Nest it: {key.replace('.', ': {')}: ...{'}' * len(below)}"
    return UserError(f"{_join(where, key)}: unknown field; allowed here: {', '.join(known)}.{mend}")


def to_dict(value: Any) -> Any:
    """Plain mappings, lists and scalars, as written to `config.yaml`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    return value


def over(base: Any, data: Any) -> Any:
    """Nested mappings laid over others; anything else, a list too, takes its place as a whole."""
    # A list merged entry by entry would mix two pipelines.
    if not isinstance(base, dict) or not isinstance(data, dict):
        return data
    return {**base, **{key: over(base.get(key), value) for key, value in data.items()}}


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


def split_flags(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(field, value) of `--a.b VALUE`, `--a.b=VALUE` and the bare boolean `--quiet`."""
    rest, previous = list(words), ""
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            several = f" Several values of one field: `{previous},{word}`." if previous else ""
            raise UserError(
                f"{word}: unexpected argument; fields are given as --a.b VALUE.{several}"
            )
        name, separator, text = word[2:].partition("=")
        previous = ""
        if separator:
            yield name, Flag(text)
        elif not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
            yield name, True
        else:
            # A word with one dash is a value, such as -0.5.
            previous = f"{word} {rest[0]}"
            yield name, Flag(rest.pop(0))


def apply_flags(
    data: dict[str, Any], words: Sequence[str], cls: type | None = None
) -> dict[str, Any]:
    """Nested mappings with dotted flags laid over them; `build` reads the values."""
    for field, value in split_flags(words):
        data = assign(data, field, value, cls)
    return data


def assign(data: dict[str, Any], field: str, value: Any, cls: type | None = None) -> dict[str, Any]:
    """A copy of nested mappings with one dotted field set, or a mapping laid over what is there.

    Dashes in a field's name stand for underscores, and a number selects an entry of a list:
    `pipeline.roles.0.branch`. An empty mapping takes the place of one whose names are free, and
    changes nothing of a section, which only the dataclass `cls` of `data` can tell.
    """
    path = field.replace("-", "_").split(".")
    empty = (read_value(value) if isinstance(value, Flag) else value) == {}
    return data if empty and cls and _is_section(cls, path) else _with(data, path, value, field)


def _is_section(cls: Any, path: Sequence[str]) -> bool:
    """Whether a dotted field below a dataclass is one itself."""
    for part in path:
        if typing.get_origin(cls) is tuple:
            cls = typing.get_args(cls)[0]  # `part` is the index of an entry
        elif dataclasses.is_dataclass(cls):
            cls = without_none(field_types(typing.cast(Any, cls)).get(part))
    return dataclasses.is_dataclass(cls)


def dotted(data: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """The (dotted path, value) of nested mappings down to what is no mapping, or an empty one."""
    for key, value in data.items():
        path = _join(where, str(key))
        if isinstance(value, dict) and value:
            yield from dotted(value, path)
        else:
            yield path, value


def _with(here: Any, path: Sequence[str], value: Any, field: str) -> Any:
    if isinstance(here, Flag):  # an earlier flag gave a whole list or section
        here = read_value(here)
    if not path:
        # A section is laid over what is there, as a file's is over the defaults.
        laid = read_value(value) if isinstance(value, Flag) and isinstance(here, dict) else value
        return over(here, laid) if isinstance(laid, dict) and laid else value
    part, *below = path
    if isinstance(here, list):
        index = whole_number(part)
        if index is None or index >= len(here):
            raise UserError(f"--{field}: {show(part)} is not one of the {len(here)} entries there.")
        return [*here[:index], _with(here[index], below, value, field), *here[index + 1 :]]
    fields = here if isinstance(here, dict) else {}
    return {**fields, part: _with(fields.get(part), below, value, field)}


def _convert(hint: Any, value: Any, path: str) -> Any:
    """A value as the type of its field wants it."""
    if isinstance(value, Flag):
        value = _read_flag(hint, value)
    if value is None and type(None) in typing.get_args(hint):
        return None
    hint = without_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    if origin is typing.Literal:
        return _choice(args, value, path)
    if origin is tuple:
        items = _items(args[0], value, path)
        return tuple(_convert(args[0], item, f"{path}.{i}") for i, item in enumerate(items))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{path}: expected a mapping, found {show(value)}.")
        return {
            _scalar(str, str(key), path): _convert(args[1], item, f"{path}.{key}")
            for key, item in value.items()
        }
    return _free(value, path) if hint is Any else _scalar(hint, value, path)


def _read_flag(hint: Any, flag: Flag) -> Any:
    """The value of a flag: the text as it was typed if the field may hold text, else YAML."""
    plain = without_none(hint)
    if plain is str or typing.get_origin(plain) is typing.Literal:
        return None if flag == "null" and plain is not hint else str(flag)
    if typing.get_origin(plain) is tuple and not flag.startswith("["):
        return str(flag)
    return read_value(flag)


def _free(value: Any, path: str) -> Any:
    """A value of any type that JSON has, in which every flag is read as YAML."""
    if isinstance(value, Flag):
        value = read_value(value)
    if isinstance(value, dict):
        return {_scalar(str, key, path): _free(value[key], f"{path}.{key}") for key in value}
    if isinstance(value, list | tuple):
        return [_free(item, f"{path}.{index}") for index, item in enumerate(value)]
    if value is not None and not isinstance(value, str | bool | int | float):
        raise UserError(
            f"{path}: expected a text, a number, a list or a mapping, found {show(value)}; put a "
            "date in quotes."
        )
    return value if value is None else _scalar(type(value), value, path)


def _choice(allowed: tuple[Any, ...], value: Any, path: str) -> Any:
    if value in allowed:
        return value
    names = list(map(str, allowed))
    raise UserError(
        f"{path}: found {show(value)}, allowed: {', '.join(names)}."
        f"{nearest(str(value), names, cutoff=0.6)}"
    )


def _items(kind: Any, value: Any, path: str) -> Sequence[Any]:
    """The items of a list, which a flag or a lone text spells as `a,b,c`."""
    if isinstance(value, str):
        if not value.strip():
            raise UserError(
                f"{path}: found an empty text, as an unset variable gives; write [] for none."
            )
        texts = [item.strip() for item in value.split(",") if item.strip()]
        return texts if kind is str else list(map(read_value, texts))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, list | tuple):
        raise UserError(f"{path}: expected a list, found {show(value)}.")
    return value


def _scalar(hint: type, value: Any, path: str) -> Any:
    """A number, a text or a truth value; YAML's other scalars are refused."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        # A larger number cannot become a float; as infinity it is refused below with a sentence.
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    # A text of digits needs no quotes in the file, although YAML reads it as a number. Other
    # numbers may have been written otherwise, as 1.10 or 12e6.
    if hint is str and number and not isinstance(value, float):
        value = str(value)
    elif hint is str and number:
        raise UserError(f"{path}: expected text, found the number {value}; put it in quotes.")
    # bool is a subclass of int, so `true` would pass as a number.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise UserError(f"{path}: expected {names.get(hint, hint)}, found {show(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: expected a finite number, found {value}.")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise UserError(f"{path}: expected a 64-bit whole number, found {show(value)}.")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{path}: the text holds a NUL character.")
    if isinstance(value, str) and has_lone_surrogate(value):
        raise UserError(f"{path}: the text {show(value)} is not UTF-8 (it holds half a character).")
    return value


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
