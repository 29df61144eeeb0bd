"""The process of the tests: calls the solution, compares the results, reports if all tests held."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import socket
import sys
from typing import Any

from . import limits, wire


class Remote:
    """A function or object that lives in the solution's process: it can be called and passed on."""

    def __init__(self, channel, target: str | int):
        self._channel, self._target = channel, target

    def __call__(self, *args, **kwargs):
        sent = [wire.encode(a, _key) for a in args]
        named = {name: wire.encode(a, _key) for name, a in kwargs.items()}
        wire.send(self._channel, [self._target, sent, named])
        return self._result(*args, *kwargs.values())

    def __bool__(self):
        # Otherwise `assert f(1)` would hold for any object.
        raise TypeError("an object of the solution is neither true nor false here")

    def _result(self, *args):
        answer = wire.receive(self._channel)
        try:
            kind, content, more = answer
            if kind == "value":
                value, *left = (self._decode(v) for v in (content, *more))
                # What the solution changed in place is changed here as well, where the tests look
                # at it.
                for mine, theirs in zip(args, left, strict=False):
                    _overwrite(mine, theirs)
                return value
            error = _error(content, str(more))
        except Exception:
            # An `except` in the tests must not forgive nonsense, so the process ends without the
            # token.
            wire.end()
        raise error

    def _decode(self, value):
        return wire.decode(value, self._found)

    def _found(self, key: int | str) -> Any:
        """Python's own type of that name, or the object that the solution keeps under the key."""
        kind = getattr(builtins, key) if isinstance(key, str) else None
        return kind if isinstance(kind, type) else Remote(self._channel, key)


def _key(value) -> int | str:
    """What the solution finds an argument by: its own objects, and Python's types and functions."""
    if isinstance(value, Remote):
        return value._target
    name = getattr(value, "__name__", "")
    if name and getattr(builtins, name, None) is value:
        return name
    raise TypeError(f"a {type(value).__name__} can't be handed to the solution")


def _overwrite(mine, theirs) -> None:
    """Brings an argument into the state that the solution left it in."""
    if isinstance(mine, list | bytearray) and isinstance(theirs, list | bytearray):
        mine[:] = theirs
    elif isinstance(mine, dict | set) and isinstance(theirs, dict | set):
        mine.clear()
        mine.update(theirs)


def _error(names: list[str], message: str) -> Exception:
    """The nearest of Python's own exceptions; `names` are the type's and those of its bases."""
    if {"StopIteration", "StopAsyncIteration"} & set(names):
        return RuntimeError(message)  # it would end a test's loop, as if all had been compared
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):  # UnicodeDecodeError takes more than a message
                return kind(message)
    return RuntimeError(message)


def main(channel_number: int) -> None:
    """Reads the order from stdin; prints the layers in force, then the token if all tests held.

    The order: `{"setup", "tests", "names", "token", "seconds", "memory"}`. `names` are the
    functions and classes of the solution that the tests use, in place of what `setup` defines.
    """
    order = json.load(sys.stdin)
    # A copy of standard output, because descriptor 1 is pointed at the null device below.
    out = os.fdopen(os.dup(1), "w")
    channel = socket.socket(fileno=channel_number).makefile("rwb")
    layers = limits.enter(order["seconds"], order["memory"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    wire.receive(channel)  # the solution's process is confined as well
    print(" ".join(layers), file=out, flush=True)
    namespace = {"__name__": "judge"}
    exec(compile(order["setup"], "setup.py", "exec", dont_inherit=True), namespace)
    # The solution's names replace those of the setup, such as the unfinished function of a prompt.
    namespace |= {name: Remote(channel, name) for name in order["names"]}
    # An exception in the submitted code is raised here and ends the judge without the token.
    Remote(channel, "")._result()  # the submitted code has been executed
    exec(compile(order["tests"], "tests.py", "exec", dont_inherit=True), namespace)
    print(order["token"], file=out, flush=True)
