"""Checks of values that come from outside, and how messages quote them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from malt_jax.errors import UserError

MAX_NAME = 64
"""The longest name that a user may give, in characters."""


def check(condition: bool, message: str) -> None:
    """Raises UserError unless `condition` holds; for the `__post_init__` of config classes.

    The message starts with the name of the field. The reader of configs puts the path of the
    section before it.
    """
    if not condition:
        raise UserError(message)


def check_path(name: str, path: str | None) -> None:
    """Raises UserError for a path that a shell would have filled in; None is no path."""
    check(path != "", f"{name}: found an empty text, as an unset variable gives; leave it out.")
    check(
        path is None or not (path == "~" or path.startswith("~/")),
        f"{name}: found {path!r}, and only a shell knows what ~ stands for; write the whole path.",
    )


def check_place(name: str, place: str | None) -> None:
    """As `check_path`, of a place to write to; refuses a URL without `//` too.

    `s3:/bucket/run` would be a folder of this machine, and nothing would reach the store.
    """
    check_path(name, place)
    scheme = re.match("[A-Za-z][A-Za-z0-9+.-]*:", place or "")
    check(
        not scheme or "://" in str(place),
        f"{name}: found {show(place)}, which looks like a URL without its `//`; give a folder or a "
        f"whole URL such as s3://bucket/run, or write ./{place} for a folder of that name.",
    )


def check_range(
    config: Any,
    *names: str,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    zero: str = "",
) -> None:
    """Raises UserError if a field of `config` lies outside a range; None always passes.

    `least` and `most` belong to the range, `above` and `below` do not. `zero` says what the
    value 0 stands for.
    """
    lower = f"above {above}" if above is not None else f"{least} ({zero})" if zero else f"{least}"
    if below is not None:
        allowed = f"{lower} to below {below}"
    elif most is not None:
        allowed = f"{lower}, at most {most}" if above is not None else f"{lower} to {most}"
    else:
        allowed = lower if above is not None else f"{lower} or more"
    for name in names:
        value = getattr(config, name)
        inside = value is None or (
            (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        check(inside, f"{name}: found {value}, allowed: {allowed}.")


def check_name(name: str, also: str = "", most: int = MAX_NAME) -> None:
    """Raises UserError unless `name` can name a file or folder on every disk.

    `also` holds further characters that are allowed.
    """
    allowed = f"_{also}"
    good = re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9{re.escape(allowed)}]{{0,{most - 1}}}", name)
    check(
        bool(good),
        f"name: found {show(name)}, allowed: at most {most} of the letters A to Z, digits "
        f"and {' '.join(allowed)}, the first one a letter or digit.",
    )


def check_unique(field: str, names: Sequence[str]) -> None:
    """Raises UserError if two names are equal or differ in case only.

    Names that differ in case only are the same file on some disks.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        count = names.count(name)
        check(count == 1, f"{field}: the name {name!r} appears twice; change one.")
        check(other == name, f"{field}: {other!r} and {name!r} differ in case only; change one.")


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for `json.loads` that raises ValueError for a name given twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {show(twice)} appears twice in one object")
    return values


def no_constant(name: str) -> NoReturn:
    """A `parse_constant` for `json.loads` that raises ValueError for NaN and infinity."""
    raise ValueError(f"{name} is not a JSON value")


def whole_number(text: str) -> int | None:
    """The number that ASCII digits spell, or None for any other text and beyond 18 digits.

    `str.isdigit` also accepts characters that `int` refuses, for instance `²`, and `int` refuses
    thousands of digits.
    """
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def has_lone_surrogate(text: str) -> bool:
    """Whether text holds half a character (a lone surrogate), which JSON can and UTF-8 cannot."""
    return re.search("[\ud800-\udfff]", text) is not None


def show(value: Any) -> str:
    """The `repr` of a value from outside, cut to 80 characters so that it fits into a message."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """` Did you mean 'x'?` for the known word most like `word`, or nothing if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""
