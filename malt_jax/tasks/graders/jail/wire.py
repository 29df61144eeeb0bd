"""Messages between judge and solution: JSON lines of plain data, rebuilt as Python's own types.

Scalars stand for themselves; everything else is `[tag, content]`. An object that is not plain data
stays in the solution's process and is sent as `["object", key]`.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

MAX_LINE = 4_000_000
_PLAIN = 1 << 10_000  # larger integers are sent in hexadecimal digits
_DAY, _CLOCK = ("year", "month", "day"), ("hour", "minute", "second", "microsecond")
_FIELDS: dict[
    type, tuple[str, ...]
] = {  # types that their constructor makes again from these attributes
    complex: ("real", "imag"),
    range: ("start", "stop", "step"),
    Fraction: ("numerator", "denominator"),
    date: _DAY,
    time: _CLOCK,
    datetime: _DAY + _CLOCK,
    timedelta: ("days", "seconds", "microseconds"),
}
_SERIES: dict[type, Callable[[list[Any]], Any]] = {  # types that are made again from a list
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    deque: deque,
    KeysView: lambda keys: dict.fromkeys(keys).keys(),
    ValuesView: lambda values: dict(enumerate(values)).values(),
    ItemsView: lambda items: dict(items).items(),
    Iterator: iter,
}
_BY_NAME = {kind.__name__: kind for kind in (*_FIELDS, *_SERIES)}


def end() -> NoReturn:
    """Ends the process: the other side is dead or sends nonsense, which no `except` may forgive."""
    os._exit(1)


def encode(value: Any, keep: Callable[[Any], int | str]) -> Any:
    """Plain data for JSON; `keep` stores any other object and gives its key."""
    # Truth values come before numbers, because bool is a subclass of int.
    if value is None or isinstance(value, bool):
        return value
    for scalar in (int, float, str):
        if isinstance(value, scalar):
            value = scalar(value)  # subclasses lose what they override
            # Python writes no decimal integer of more than 4,300 digits.
            return ["int", hex(value)] if scalar is int and abs(value) > _PLAIN else value
    if isinstance(value, bytes | bytearray):
        name = "bytes" if isinstance(value, bytes) else "bytearray"
        return [name, value.decode("latin-1")]
    if type(value) is Decimal:
        return ["Decimal", str(value)]
    fields = _FIELDS.get(type(value))
    # A time zone is not sent, so a value that has one stays an object.
    if fields and getattr(value, "tzinfo", None) is None:
        return [type(value).__name__, [encode(getattr(value, name), keep) for name in fields]]
    if isinstance(value, dict):
        return ["dict", [[encode(k, keep), encode(v, keep)] for k, v in value.items()]]
    if series := next((kind for kind in _SERIES if isinstance(value, kind)), None):
        return [series.__name__, [encode(v, keep) for v in value]]
    # A scalar of NumPy becomes Python's own number.
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item(), keep)
    return ["object", keep(value)]


def decode(value: Any, find: Callable[[int | str], Any]) -> Any:
    """The value again; `find` gives the object of a key. Raises any error for nonsense."""
    if not isinstance(value, list):
        return value
    tag, content = value
    if tag == "object":
        return find(content)
    if tag in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[tag](content, "latin-1")
    if tag == "Decimal":
        return Decimal(content)
    if tag == "int":
        return int(content, 16)
    if tag == "dict":
        return {decode(k, find): decode(v, find) for k, v in content}
    kind = _BY_NAME[tag]
    parts = [decode(v, find) for v in content]
    return kind(*parts) if kind in _FIELDS else _SERIES[kind](parts)


def send(channel, message: Any) -> None:
    try:
        channel.write(json.dumps(message).encode() + b"\n")
        channel.flush()
    except OSError:
        end()


def receive(channel) -> Any:
    try:
        # A longer line arrives without its newline and ends the process.
        line = channel.readline(MAX_LINE)
        return json.loads(line) if line.endswith(b"\n") else end()
    except (OSError, ValueError, RecursionError):
        end()
