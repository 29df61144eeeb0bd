"""The process of the submitted code. Whatever happens in here, it can only send answers."""

from __future__ import annotations

import json
import os
import socket
import sys

import limits
import wire


def main() -> None:
    """Reads `{"code", "seconds", "memory"}` from stdin, then answers calls on the channel."""
    order = json.load(sys.stdin)
    channel = socket.socket(fileno=int(sys.argv[2])).makefile("rwb")
    limits.enter(order["seconds"], order["memory"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.path.pop(0)  # this folder
    namespace = {"__name__": "solution"}
    try:
        exec(compile(order["code"], "solution.py", "exec"), namespace)
    except Exception as error:
        wire.send(channel, ["raise", [type(error).__name__, str(error)[:1000]]])
        return
    wire.send(channel, ["value", None])
    objects: list = []
    while True:
        target, args, kwargs = wire.receive(channel)
        wire.send(channel, _answer(target, args, kwargs, namespace, objects))


def _answer(target, args, kwargs, namespace: dict, objects: list) -> list:
    """`["value", v]` or `["raise", [type, message]]` of one call."""

    def keep(value) -> int:
        objects.append(value)
        return len(objects) - 1

    try:
        function = namespace[target] if isinstance(target, str) else objects[target]
        args = [wire.decode(a, objects.__getitem__) for a in args]
        kwargs = {name: wire.decode(a, objects.__getitem__) for name, a in kwargs.items()}
        return ["value", wire.encode(function(*args, **kwargs), keep)]
    except Exception as error:
        return ["raise", [type(error).__name__, str(error)[:1000]]]
