"""Checks of values that come from outside: numbers, names, ranges, and how messages quote them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from malt_jax.errors import UserError

MAX_NAME = 64
"""Longest name that a user may give, in characters."""


def check(condition: bool, message: str) -> None:
    """For `__post_init__`: a range check whose message starts with the field's own name."""
    if not condition:
        raise UserError(message)


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object in which no name stands twice, else ValueError."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {show(twice)} stands twice in one object")
    return values


def whole_number(text: str) -> int | None:
    """The number that ASCII digits spell; None for all else, and beyond 64 bits.

    `str.isdigit` also accepts what `int` refuses, as `²`, and `int` refuses thousands of digits.
    """
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def show(value: Any) -> str:
    """A value from outside as it may stand in a message: its `repr`, cut to 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer too long to print
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def check_name(name: str, also: str = "", most: int = MAX_NAME) -> None:
    """A `name` that files and folders can have on every disk, with further characters `also`."""
    allowed = f"_{also}"
    good = re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9{re.escape(allowed)}]{{0,{most - 1}}}", name)
    check(
        bool(good),
        f"name: found {show(name)}, allowed: at most {most} of the letters A to Z, digits "
        f"and {' '.join(allowed)}, the first one a letter or digit.",
    )


def check_unique(field: str, names: Sequence[str]) -> None:
    """Names that differ in case only are one file on some disks."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        count = names.count(name)
        check(count == 1, f"{field}: the name {name!r} stands twice; change one.")
        check(other == name, f"{field}: {other!r} and {name!r} differ in case only; change one.")
