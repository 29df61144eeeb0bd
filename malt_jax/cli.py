"""The `malt` command: finds the command, runs it, and turns the outcome into an exit status.

0: done. 2: the user's input is wrong (one message, no traceback). 75: something outside, such as a
store, does not answer, and the same command may succeed later. 1: a fault of malt-jax. 130 and 143:
interrupted or asked to stop, after the state was saved. A reader that closes standard output
early (`| head`) has seen enough, which is no error; one that closes standard error changes nothing.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from malt_jax.checks import nearest
from malt_jax.commands.command import Command, parse
from malt_jax.commands.help import command_help, overview
from malt_jax.distributed import another_gone, leave
from malt_jax.environment import check_environment, quiet_libraries, unusable_backend
from malt_jax.errors import RunStopped, UserError
from malt_jax.escape import one_line, visible
from malt_jax.memory import release_after_compiling
from malt_jax.storage.signals import stop_ends_process
from malt_jax.streams import OutputLost, drop_output, set_up

INTERRUPTED = 130


def console() -> NoReturn:
    """The program `malt`."""
    set_up()
    stop_ends_process()
    status = main()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not change the exit status
    try:
        sys.stdout.flush()  # Python's own flush at exit would change the status on failure
    except OutputLost:
        drop_output()
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `malt` with these words (default: those of the process) and returns its exit status."""
    status = _run(list(sys.argv[1:] if arguments is None else arguments))
    return leave(status) if status else 0


def _run(words: list[str]) -> int:
    """Runs the words and prints at most one message about a failure."""
    try:
        dispatch(words)
        sys.stdout.flush()
        return 0
    except UserError as error:
        return _say(str(error), error.status)
    except OutputLost as lost:
        drop_output()
        if lost.abandoned:
            return 0
        return _say(f"standard output could not be written: {lost}.", 2)
    except RunStopped as stop:
        return _say(str(stop), 128 + stop.signal_number)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if gone := another_gone(error):
            return _say(one_line(gone), 1)
        if refusal := unusable_backend(error):
            return _say(str(refusal), refusal.status)
        # Exceptions may quote a model or a file, so control characters are written out.
        print(visible(traceback.format_exc()), end="", file=sys.stderr)
        return _say("this is a fault of malt-jax, not of your input.", 1)


def _say(sentence: str, status: int) -> int:
    print(f"malt: {sentence}", file=sys.stderr)
    return status


def dispatch(words: list[str]) -> None:
    """Runs the command that `words` begin with."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(all_commands()), end="")
        return
    if words[0] == "--version":
        print(version())
        return
    commands = {command.name: command for command in all_commands()}
    name, *rest = words
    if name not in commands:
        raise UserError(
            f"{name!r} is not a command.{nearest(name, commands)} `malt --help` lists them."
        )
    command = commands[name]
    if "-h" in rest or "--help" in rest:
        print(command_help(command), end="")
        return
    invocation = parse(command, rest)
    quiet_libraries()
    if command.computes:
        check_environment()
        release_after_compiling()
    command.run(invocation)


def all_commands() -> tuple[Command, ...]:
    """All commands in the order in which the overview lists them."""
    from malt_jax.commands import (
        ask,
        bench,
        completion,
        fields,
        init,
        lists,
        plan,
        pool,
        serve,
        stage,
    )  # fmt: skip

    commands = (
        *stage.COMMANDS,
        pool.COMMAND,
        ask.COMMAND,
        serve.COMMAND,
        plan.COMMAND,
        bench.COMMAND,
        init.COMMAND,
        *lists.COMMANDS,
        fields.COMMAND,
    )
    return (*commands, completion.make_command(commands))


def version() -> str:
    """The versions of the package and of what it computes with, and the devices.

    Where no device can be used, the last line says why.
    """
    from malt_jax import __version__
    from malt_jax.environment import devices
    from malt_jax.storage.provenance import versions

    found = versions()
    lines = [f"malt-jax {__version__}"]
    lines += [f"{name} {found[name]}" for name in ("jax", "flax", "python") if name in found]
    try:
        check_environment()
        lines.append(f"device {', '.join(devices())}")
    except UserError as error:
        lines.append(f"device none: {error}")
    return "\n".join(lines)


if __name__ == "__main__":
    console()
