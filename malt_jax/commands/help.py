"""The help texts of `malt` and of its commands, each on one screen."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from malt_jax.commands.command import CONFIG_FLAGS, Command
from malt_jax.config.fields import Field
from malt_jax.config.run import all_fields

RIGHT_COLUMN = 32
"""The column at which the explanations start."""


def overview(commands: Sequence[Command]) -> str:
    """The help of `malt` itself."""
    lines = [
        "malt: trains a chain of language-model roles by tree search",
        "",
        "  malt COMMAND --config FILE.yaml [--FIELD VALUE ...]",
        "",
        "Commands",
    ]
    for command in commands:
        lines += entry(f"  {command.name}", command.summary, column=14)
    lines += [
        "",
        "`malt COMMAND --help` explains a command; `malt --version` prints versions and devices.",
        "Any field of the config is a flag: --task.num-train 200. Results go to standard",
        "output, progress to standard error. Exit status: 0 done, 2 your input is wrong,",
        "1 our fault, 130 or 143 stopped with the state saved.",
        "",
        "Examples",
        "  malt run --config quickstart",
        '  malt ask "2+9+3+3+2+8+9+6" --run runs/quickstart',
    ]
    return "\n".join(lines)


def command_help(command: Command) -> str:
    """The help of one command."""
    lines = [f"malt {command.name}: {command.summary}", "", f"  {_usage(command)}", ""]
    lines += textwrap.wrap(command.about, screen_width(), break_on_hyphens=False)
    if command.arguments:
        lines += ["", "Arguments"]
        for argument in command.arguments:
            lines += entry(f"  {argument.name.upper()}", argument.help)
    options = command.own_options + (CONFIG_FLAGS if command.takes_config else ())
    if options:
        lines += ["", "Flags"]
        for option in options:
            default = "" if option.default is None else f" [{option.default}]"
            lines += entry(f"  {option.flag} {option.value}", option.help + default)
    if command.takes_config:
        lines += ["", "Fields that matter here, with [defaults]; `malt fields` lists all fields"]
        known = {field.path: field for field in all_fields()}
        lines += fields_help(known[path] for path in command.fields)
    lines += ["", "Example" if len(command.examples) == 1 else "Examples"]
    lines += [f"  {example}" for example in command.examples]
    return "\n".join(lines)


def fields_help(fields: Iterable[Field]) -> Iterator[str]:
    """Flag, type, help and default of config fields."""
    for field in fields:
        default = _shown(field.default)
        text = field.help + (f" [{default}]" if default else "")
        yield from entry(f"  {field.flag} {field.kind}", text)


def entry(left: str, right: str, column: int = RIGHT_COLUMN) -> list[str]:
    """One entry in two columns; a long left half has a line of its own."""
    width = screen_width() - column
    wrapped = textwrap.wrap(right, width, break_on_hyphens=False) or [""]
    indented = [" " * column + line for line in wrapped]
    if len(left) >= column:
        return [left.rstrip(), *indented]
    return [(left.ljust(column) + wrapped[0]).rstrip(), *indented[1:]]


def screen_width() -> int:
    """The columns of the terminal, within what is pleasant to read."""
    return min(max(shutil.get_terminal_size((100, 40)).columns, 60), 100)


def _usage(command: Command) -> str:
    words = ["malt", command.name]
    for argument in command.arguments:
        word = argument.shown + (" ..." if argument.many else "")
        words.append(word if argument.required else f"[{word}]")
    if command.takes_config:
        words.append("--config FILE.yaml [--FIELD VALUE ...]")
    else:
        for option in command.options:
            word = f"{option.flag} {option.value}".strip()
            words.append(word if option.required else f"[{word}]")
    return " ".join(words)


def _shown(value: Any) -> str:
    """A default as a user would type it; nothing if the help text says what it means."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None or value == {} else str(value)
