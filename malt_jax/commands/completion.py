"""`malt completion`: shell scripts that complete commands, flags and config fields."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from malt_jax.commands.command import Argument, Command, Invocation, add_words
from malt_jax.config.run import all_fields

SHELLS = ("bash", "zsh", "fish")


def script(commands: Sequence[Command], shell: str) -> str:
    """The completion script of these commands for a shell."""
    import shtab

    parser = argparse.ArgumentParser(prog="malt")
    names = parser.add_subparsers()
    for command in commands:
        one = names.add_parser(command.name, help=command.summary)
        add_words(one, command)
        known = {option.flag for option in command.own_options}
        for field in all_fields() if command.takes_config else ():
            if not field.in_list and field.flag not in known:
                one.add_argument(field.flag, help=field.help.replace("%", "%%"))
        for action in one._actions:
            if action.metavar is None and action.dest in ("config", "output", "run"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell)


def make_command(others: Sequence[Command]) -> Command:
    """The command that completes the other commands and itself."""

    def run(invocation: Invocation) -> None:
        print(script((*others, command), invocation.options.shell), end="")

    command = Command(
        name="completion",
        summary="a completion script for bash, zsh or fish",
        about="Prints the script. Load it with `source <(malt completion bash)`, or put it where "
        "your shell looks for completions; fish: `malt completion fish | source`.",
        run=run,
        arguments=(Argument("shell", "Which shell.", SHELLS),),
        examples=("malt completion bash > ~/.local/share/bash-completion/completions/malt",),
    )
    return command
