"""What checks annotations in the tests: an int is a float, as PEP 484 has it."""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

_jaxtyped = jaxtyping.jaxtyped
_checks: dict[types.CodeType, Callable] = {}
_called = threading.local()


def jaxtyped(fn: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, which makes the checks of a nested function once.

    They take two milliseconds, and a function inside of another is defined at every call of the
    other: this was a third of the time of tracing a decode program.
    """
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not isinstance(fn, types.FunctionType):
        return _jaxtyped(fn, typechecker=typechecker)
    if not fn.__annotations__:
        return fn
    if "<locals>" not in fn.__qualname__:
        return _jaxtyped(fn, typechecker=typechecker)
    if fn.__code__ not in _checks:
        _checks[fn.__code__] = _jaxtyped(_last_called(fn), typechecker=typechecker)
    check = _checks[fn.__code__]

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        _called.function = fn
        return check(*args, **kwargs)

    return call


def _last_called(like: types.FunctionType) -> types.FunctionType:
    """A function with the signature of `like`, which calls what is called at the moment."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return called.function(*args, **kwargs)

    # Annotations are strings, which are looked up in the module of the function.
    called, name = _called, like.__name__
    made = types.FunctionType(run.__code__, like.__globals__, name, None, run.__closure__)
    made.__qualname__, made.__module__ = like.__qualname__, like.__module__
    made.__signature__ = inspect.signature(like)  # type: ignore[attr-defined]
    return made
