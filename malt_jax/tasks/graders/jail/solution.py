"""The process of the submitted code. Whatever happens in it, it can only send answers."""

from __future__ import annotations

import builtins
import json
import os
import socket
import sys

from . import limits, wire


def main(channel_number: int) -> None:
    """Reads `{"parts", "seconds", "memory"}` from stdin, then answers calls on the channel.

    `parts` are the texts that make up the program, executed one after the other.
    """
    order = json.load(sys.stdin)
    channel = socket.socket(fileno=channel_number).makefile("rwb")
    # Nothing of the submitted code has run so far, and all of it runs confined.
    limits.enter(order["seconds"], order["memory"])
    # What the code prints goes nowhere: the channel is its only way out.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    wire.send(channel, "confined")
    namespace = {"__name__": "solution"}
    try:
        for part in order["parts"]:
            # `dont_inherit`: the `__future__` imports of this file must not apply to the code.
            exec(compile(part, "solution.py", "exec", dont_inherit=True), namespace)
    except Exception as error:
        # `sys.exit` is no Exception: it ends the process, and the judge sees a closed channel.
        wire.send(channel, _raised(error))
        return
    wire.send(channel, ["value", None, []])
    objects: list = []
    while True:
        target, args, kwargs = wire.receive(channel)
        wire.send(channel, _answer(target, args, kwargs, namespace, objects))


def _answer(target, args, kwargs, namespace: dict, objects: list) -> list:
    """`["value", v, arguments]` or `["raise", names, message]` of one call.

    A call that returns None may have worked in place, so its arguments are returned as it left
    them. After any other call they are not, because a test may compare the value with them.
    """

    def find(key: int | str):
        if isinstance(key, int):
            return objects[key]
        return namespace[key] if key in namespace else getattr(builtins, key)

    def keep(value) -> int | str:
        # A type of Python's own travels by its name; any other object stays here and gets a number.
        name = value.__name__ if isinstance(value, type) else ""
        if name and getattr(builtins, name, None) is value:
            return name
        objects.append(value)
        return len(objects) - 1

    try:
        args = [wire.decode(a, find) for a in args]
        kwargs = {name: wire.decode(a, find) for name, a in kwargs.items()}
        # A name that the program lacks is not Python's own: an answer without `max` has no `max`.
        function = objects[target] if isinstance(target, int) else namespace[target]
        value = function(*args, **kwargs)
        left = [*args, *kwargs.values()] if value is None else []
        return ["value", wire.encode(value, keep), [wire.encode(a, keep) for a in left]]
    except Exception as error:
        return _raised(error)


def _raised(error: Exception) -> list:
    return ["raise", [kind.__name__ for kind in type(error).__mro__], str(error)[:1000]]
