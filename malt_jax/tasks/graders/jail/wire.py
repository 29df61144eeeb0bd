"""Values between judge and solution: JSON lines of plain data, rebuilt as Python's own types.

Scalars are themselves; everything else is `[tag, content]`. An object that is not plain data stays
in the solution's process and travels as `["object", number]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

MAX_LINE = 4_000_000


class Gone(BaseException):
    """The other side is dead or talks nonsense. No `except Exception` of a test catches it."""


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Plain data for JSON; `keep` stores any other object and gives its number."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # subclasses lose what they override
    if isinstance(value, bytes):
        return ["bytes", value.decode("latin-1")]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(v, keep) for v in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(k, keep), encode(v, keep)] for k, v in value.items()]]
    if isinstance(value, Iterator):
        return ["iterator", [encode(v, keep) for v in value]]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item(), keep)
    return ["object", keep(value)]


def decode(value: Any, find: Callable[[int], Any]) -> Any:
    """The value again; `find` gives the object of a number. Raises ValueError for nonsense."""
    if not isinstance(value, list):
        return value
    tag, content = value
    if tag == "object":
        return find(content)
    if tag == "bytes":
        return content.encode("latin-1")
    if tag in ("complex", "range"):
        return {"complex": complex, "range": range}[tag](*content)
    if tag == "dict":
        return {decode(k, find): decode(v, find) for k, v in content}
    kinds = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}
    return kinds[tag]([decode(v, find) for v in content])


def send(channel, message: Any) -> None:
    try:
        channel.write(json.dumps(message).encode() + b"\n")
        channel.flush()
    except OSError:
        raise Gone from None


def receive(channel) -> Any:
    try:
        line = channel.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise Gone
        return json.loads(line)
    except (OSError, ValueError, RecursionError):
        raise Gone from None
