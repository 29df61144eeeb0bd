"""What a command of `malt` declares, and how its words and flags are parsed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NoReturn

from malt_jax.checks import nearest
from malt_jax.config.fields import field_types
from malt_jax.config.reading import split_flags
from malt_jax.config.run import Config, all_fields
from malt_jax.errors import UserError


@dataclass(frozen=True)
class Option:
    """A flag of one command, as opposed to a field of the config."""

    flag: str
    help: str
    value: str = ""
    """What help calls its value; a flag without a value is a switch."""
    default: Any = None
    read: Callable[[str], Any] = str
    required: bool = False
    several: bool = False
    """Whether it takes one value or more."""


@dataclass(frozen=True)
class Argument:
    """A positional argument of a command."""

    name: str
    help: str
    choices: tuple[str, ...] = ()
    required: bool = True
    many: bool = False


@dataclass(frozen=True)
class Invocation:
    """A parsed call of a command: its own options, and the flags of config fields."""

    command: Command
    options: argparse.Namespace
    fields: list[str]


CONFIG = Option("--config", "The YAML file with the run's fields.", "FILE")
TRUST = Option("--trust-task-code", "Run code that a run's own config names.")


@dataclass(frozen=True)
class Command:
    """A command of `malt`. `run` prints results on standard output and raises on failure."""

    name: str
    summary: str
    """One line, for the list of commands."""
    about: str
    """A few lines, for its own help."""
    run: Callable[[Invocation], None]
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    fields: tuple[str, ...] = ()
    """Config fields that its help shows; a command without any takes no config."""
    examples: tuple[str, ...] = ()
    computes: bool = False
    """Whether it computes with JAX, so that the environment is checked before it runs."""

    @property
    def takes_config(self) -> bool:
        return bool(self.fields)

    @property
    def own_options(self) -> tuple[Option, ...]:
        """Its options, and those of every command that takes a config."""
        return (CONFIG, *self.options, TRUST) if self.takes_config else self.options


class Parser(argparse.ArgumentParser):
    """The `argparse` parser of one command, which raises UserError instead of exiting."""

    def __init__(self, command: Command, **kwargs: Any):
        kwargs.setdefault("prog", f"malt {command.name}")
        # No abbreviations: what argparse does not know is a field of the config, not a short flag.
        super().__init__(add_help=False, allow_abbrev=False, **kwargs)
        words = self.add_argument_group("Arguments")
        for argument in command.arguments:
            words.add_argument(
                argument.name,
                help=argument.help,
                metavar="|".join(argument.choices) or argument.name.upper(),
                choices=argument.choices or None,
                nargs="+" if argument.many else None if argument.required else "?",
            )
        self.flags = self.add_argument_group("Flags")
        for option in command.own_options:
            add_option(self.flags, option)

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("malt ")
        raise UserError(f"{name}: {message}; see `{self.prog} --help`.")


def add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """Declares a flag to `argparse`."""
    if not option.value:
        group.add_argument(option.flag, help=option.help, action="store_true")
        return
    default = "" if option.default is None else f" [{option.default}]"
    group.add_argument(
        option.flag,
        help=option.help + default,
        metavar=option.value,
        default=option.default,
        type=option.read,
        required=option.required,
        nargs="+" if option.several else None,
    )


def parse(command: Command, words: Sequence[str]) -> Invocation:
    """Parses the words after a command's name; raises UserError for an unknown word or field."""
    # Words that argparse does not know may be fields of the config. It takes `--a=b c` for an
    # argument, so words with a value are hidden from it, and put back in their places.
    own = {option.flag for option in command.own_options}
    shown, values = list(words), dict[str, str]()
    for place, word in enumerate(takewhile(lambda word: word != "--", words)):
        if command.takes_config and _FIELD.match(word) and word.split("=")[0] not in own:
            shown[place] = f"--field-{place}"
            values[shown[place]] = word
    options, rest = Parser(command).parse_known_args(shown)
    rest = [values.get(word, word) for word in rest]
    if command.takes_config:
        # Only the section is checked here. What is wrong below it, the reader of configs says.
        for name, _ in split_flags(rest):
            if name.split(".")[0].replace("-", "_") not in field_types(Config):
                raise _unknown(command, f"--{name}")
    elif rest:
        raise _unknown(command, rest[0])
    return Invocation(command, options, rest)


_FIELD = re.compile(r"--[A-Za-z][\w.-]*=", re.ASCII)


def _unknown(command: Command, word: str) -> UserError:
    hint = ""
    if word.startswith("--"):
        hint = _suggested_flag(command, word)
    elif word.startswith("-") and command.arguments:
        name = command.arguments[0].name
        hint = f" If it is the {name}, put it last, after two dashes: -- '{word}'."
    return UserError(
        f"{command.name}: {word!r} is not a flag, field or argument here.{hint} "
        f"See `malt {command.name} --help`."
    )


def _suggested_flag(command: Command, word: str) -> str:
    """The flag that was probably meant: `--num-train` is short for `--task.num-train`."""
    flags = [field.flag for field in all_fields() if not field.in_list]
    ending = [flag for flag in flags if flag.endswith(f".{word[2:].replace('_', '-')}")]
    if command.takes_config and 0 < len(ending) <= 3:
        return f" Did you mean {' or '.join(ending)}?"
    known = [option.flag for option in command.own_options]
    return nearest(word, [*known, *flags] if command.takes_config else known)
