"""What a command of `malt` is: its words, its flags, its help, and the reading of them."""

from __future__ import annotations

import argparse
import difflib
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from malt_jax.errors import UserError

LEFT = 32
"""Columns of the left half of help."""


@dataclass(frozen=True)
class Option:
    """A flag of a command itself; without a `value` it is a switch."""

    flag: str
    help: str
    value: str = ""
    default: Any = None
    read: Callable[[str], Any] = str
    required: bool = False
    several: bool = False
    """Takes one value or more."""


@dataclass(frozen=True)
class Argument:
    """A word of the command line that is no flag."""

    name: str
    help: str
    choices: tuple[str, ...] = ()
    required: bool = True
    many: bool = False


@dataclass(frozen=True)
class Invocation:
    """One call of a command: its own words and flags, and those left for the config's fields."""

    command: Command
    options: argparse.Namespace
    fields: list[str]


@dataclass(frozen=True)
class Command:
    """One command. `run` prints results on standard output; failures are exceptions."""

    name: str
    summary: str
    """One line, for the list of commands."""
    about: str
    """A few lines, for its own help."""
    run: Callable[[Invocation], None]
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    fields: tuple[str, ...] = ()
    """Config fields its help shows; a command without any takes no config."""
    examples: tuple[str, ...] = ()

    @property
    def takes_config(self) -> bool:
        return bool(self.fields)

    @property
    def usage(self) -> str:
        words = ["malt", self.name]
        for argument in self.arguments:
            word = "|".join(argument.choices) or argument.name.upper()
            word += " ..." if argument.many else ""
            words.append(word if argument.required else f"[{word}]")
        for option in () if self.takes_config else self.options:
            word = f"{option.flag} {option.value}".strip()
            words.append(word if option.required else f"[{word}]")
        if self.takes_config:
            words.append("--config FILE.yaml [--FIELD VALUE ...]")
        return " ".join(words)

    @property
    def own_options(self) -> tuple[Option, ...]:
        """Its flags with those every command of its kind has."""
        config = Option("--config", "The YAML file with the run's fields.", "FILE")
        return (config, *self.options) if self.takes_config else self.options


CONFIG_FLAGS = (
    Option("--output-dir", "The run directory; one of the same config is continued.", "DIR"),
    Option("--quiet", "No progress on standard error."),
)
"""Fields of the config that read like flags of every command that works on a run."""


def parse(command: Command, words: Sequence[str]) -> Invocation:
    """Splits the words after a command's name; raises UserError for words it does not know."""
    parser = _Parser(prog=f"malt {command.name}", add_help=False, allow_abbrev=False)
    for argument in command.arguments:
        parser.add_argument(
            argument.name,
            metavar="|".join(argument.choices) or argument.name.upper(),  # as messages name it
            choices=argument.choices or None,
            nargs="+" if argument.many else None if argument.required else "?",
        )
    for option in command.own_options:
        if option.value:
            parser.add_argument(
                option.flag,
                default=option.default,
                type=option.read,
                required=option.required,
                nargs="+" if option.several else None,
            )
        else:
            parser.add_argument(option.flag, action="store_true")
    options, rest = parser.parse_known_args(list(words))
    if rest and not command.takes_config:
        raise UserError(_unexpected(command, rest[0], ()))
    if command.takes_config:
        _refuse_unknown_fields(command, rest)
    return Invocation(command, options, rest)


def help_text(command: Command, field_lines: Callable[[Iterable[str], int], list[str]]) -> str:
    """The help of one command. `field_lines` prints config fields by name, at a width."""
    width = screen_width()
    lines = [f"malt {command.name}: {command.summary}", "", f"  {command.usage}", ""]
    lines += textwrap.wrap(command.about, width, break_on_hyphens=False)
    if command.arguments:
        lines += ["", "Arguments"]
        for argument in command.arguments:
            lines += row(f"  {argument.name.upper()}", argument.help, width)
    shown = command.own_options + (CONFIG_FLAGS if command.takes_config else ())
    if shown:
        lines += ["", "Flags"]
        for option in shown:
            default = "" if option.default is None else f" [{option.default}]"
            lines += row(f"  {option.flag} {option.value}", option.help + default, width)
    if command.takes_config:
        lines += ["", "Fields that matter here, with [defaults]; `malt fields` lists all of them"]
        lines += field_lines(command.fields, width)
    lines += ["", "Example" if len(command.examples) == 1 else "Examples"]
    lines += [f"  {example}" for example in command.examples]
    return "\n".join(lines)


def row(left: str, right: str, width: int, column: int = LEFT) -> list[str]:
    """One entry of help in two columns; a long left half has its line to itself."""
    wrapped = textwrap.wrap(right, width - column, break_on_hyphens=False) or [""]
    indented = [" " * column + line for line in wrapped]
    if len(left) >= column:
        return [left.rstrip(), *indented]
    return [(left.ljust(column) + wrapped[0]).rstrip(), *indented[1:]]


def screen_width() -> int:
    """Columns to print help in: those of the terminal, within what is pleasant to read."""
    return min(max(shutil.get_terminal_size((100, 40)).columns, 60), 100)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """` Did you mean 'x'?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("malt ")
        raise UserError(f"{name}: {message}; see `{self.prog} --help`.")


def _refuse_unknown_fields(command: Command, rest: Sequence[str]) -> None:
    """Names a flag that is neither the command's nor under a section of the config.

    What is wrong below a section, the reading of the config says.
    """
    from malt_jax.config.reading import field_types
    from malt_jax.config.run import Config

    sections = field_types(Config)
    previous = before = ""
    for word in rest:
        if word.startswith("--") and len(word) > 2:
            name = word[2:].partition("=")[0].replace("-", "_")
            if name.split(".")[0] not in sections:
                raise UserError(_unexpected(command, word.partition("=")[0], sections))
        elif not previous.startswith("--") or "=" in previous:
            several = ""
            if before.startswith("--"):
                several = f" Several values of one field: `{before} {previous},{word}`."
            raise UserError(_unexpected(command, word, (), several))
        before, previous = previous, word


def _by_last_part(word: str) -> str:
    """The fields that end in a flag's name: `--num-train` is short for `--task.num-train`."""
    from malt_jax.commands.fields import config_fields

    name = word[2:].replace("-", "_")
    paths = [f.path for f in config_fields() if f.path.endswith(f".{name}") and ".N." not in f.path]
    if not 0 < len(paths) <= 3:
        return ""
    return f" Did you mean {' or '.join(f'--{path}'.replace('_', '-') for path in paths)}?"


def _unexpected(command: Command, word: str, sections: Iterable[str], hint: str = "") -> str:
    flags = [option.flag for option in (*command.own_options, *CONFIG_FLAGS)]
    flags += [f"--{name.replace('_', '-')}" for name in sections]
    if command.arguments and word[:1] == "-" and word[1:2] != "-":
        name = command.arguments[0].name
        hint = f" If it is the {name}, put it last, after two dashes: -- '{word}'."
    if word.startswith("--") and not hint:
        hint = _by_last_part(word) or nearest(word, flags)
    return (
        f"{command.name}: {word!r} is not a flag, field or argument here.{hint} "
        f"See `malt {command.name} --help`."
    )
