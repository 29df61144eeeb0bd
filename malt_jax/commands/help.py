"""The help texts of `malt` and of its commands, each on one screen."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from malt_jax.commands.command import Command, Option, Parser, add_option
from malt_jax.config.fields import Field
from malt_jax.config.run import all_fields

EPILOG = """\
`malt COMMAND --help` explains a command; `malt --version` prints versions and devices.
Any field of the config is a flag: --task.num-train 200. Results go to standard
output, progress to standard error. Exit status: 0 done, 2 your input is wrong,
75 a store, hub or device does not answer, 1 our fault, 130 or 143 stopped with
the state saved.

Examples
  malt run --config quickstart
  malt ask "2+9+3+3+2+8+9+6" --run runs/quickstart"""
CONFIG_FLAGS = (
    Option("--output-dir", "The run directory; continued if it exists.", "DIR"),
    Option("--quiet", "No progress on standard error."),
)
"""Fields of the config that help shows as flags of every command that works on a run."""


def overview(commands: Sequence[Command]) -> str:
    """The help of `malt` itself."""
    parser = argparse.ArgumentParser(
        prog="malt",
        usage="malt COMMAND --config FILE.yaml [--FIELD VALUE ...]",
        description="Trains a chain of language-model roles by tree search (MALT).",
        epilog=EPILOG,
        formatter_class=_layout,
        add_help=False,
    )
    group = parser.add_argument_group("Commands")
    for command in commands:
        group.add_argument(command.name, help=command.summary)
    return parser.format_help()


def command_help(command: Command) -> str:
    """The help of one command."""
    usage = None
    if command.takes_config:
        words = [a.name.upper() for a in command.arguments]
        usage = " ".join(["%(prog)s", *words, "--config FILE.yaml [--FIELD VALUE ...]"])
    title = "Example" if len(command.examples) == 1 else "Examples"
    parser = Parser(
        command,
        usage=usage,
        description=textwrap.fill(command.about, _screen_width(), break_on_hyphens=False),
        epilog="\n".join([title, *(f"  {example}" for example in command.examples)]),
        formatter_class=_layout,
        conflict_handler="resolve",  # `malt report` shows --output-dir as its one field
    )
    if command.takes_config:
        for option in CONFIG_FLAGS:
            add_option(parser.flags, option)
        known = {field.path: field for field in all_fields()}
        group = parser.add_argument_group(
            "Fields that matter here, with [defaults]; `malt fields` lists all fields"
        )
        # A command's help fits a screen: of a field it has the first clause.
        shown = (known[path] for path in command.fields)
        add_fields(group, (replace(f, help=re.split("[.;] ", f.help)[0]) for f in shown))
    return parser.format_help()


def add_fields(group: argparse._ArgumentGroup, fields: Iterable[Field]) -> None:
    """Declares config fields to `argparse`, for help and completion."""
    for field in fields:
        default = _shown(field.default)
        text = field.help + (f" [{default}]" if default else "")
        # argparse formats help texts, so a percent sign of our own is doubled.
        group.add_argument(field.flag, metavar=field.kind, help=text.replace("%", "%%"))


def fields_help(sections: dict[str, list[Field]]) -> str:
    """The fields of some sections with their type, help and default."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, formatter_class=_layout, add_help=False
    )
    for name, fields in sections.items():
        add_fields(parser.add_argument_group(name), fields)
    return parser.format_help()


def _layout(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=_screen_width())


def _screen_width() -> int:
    """The columns of the terminal, within what is pleasant to read."""
    return min(max(shutil.get_terminal_size((100, 40)).columns, 60), 100)


def _shown(value: Any) -> str:
    """A default as a user would type it; nothing if the help text says what it means."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None or value == {} else str(value)
