"""`malt completion`: shell scripts that complete commands, flags and config fields."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from malt_jax.commands.command import Argument, Command, Invocation, Parser
from malt_jax.commands.help import add_fields
from malt_jax.config.run import all_fields


def script(commands: Sequence[Command], shell: str) -> str:
    """The completion script of these commands for a shell."""
    import shtab

    parser = argparse.ArgumentParser(prog="malt")
    names = parser.add_subparsers(parser_class=Parser)
    for command in commands:
        one = names.add_parser(command.name, command=command, help=command.summary)
        if command.takes_config:
            add_fields(one.flags, (field for field in all_fields() if not field.in_list))
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
        arguments=(Argument("shell", "Which shell.", ("bash", "zsh", "fish")),),
        examples=("malt completion bash > ~/.local/share/bash-completion/completions/malt",),
    )
    return command
