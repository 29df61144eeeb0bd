"""The `malt` command: finds the command, runs it, and turns what happened into an exit status.

0 done; 2 the user's input is wrong (one message, no traceback); 1 a fault of ours; 130 and 143
interrupted or told to stop, after the state was saved. A reader who leaves standard output early
(`| head`) has seen enough: 0. One who leaves standard error changes nothing: a run goes on.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from malt_jax.commands.command import Command, help_text, nearest, parse, row, screen_width
from malt_jax.distributed import another_gone, leave
from malt_jax.errors import RunStopped, UserError
from malt_jax.escape import one_line, visible
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
        sys.stdout.flush()  # of a command that failed; Python's own end would change the status
    except OutputLost:
        drop_output()
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `malt` with these words (default: those of the process) and returns its exit status."""
    status = _run(arguments)
    return leave(status) if status else 0


def _run(arguments: Sequence[str] | None) -> int:
    try:
        dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(f"malt: {error}", file=sys.stderr)
        return 2
    except OutputLost as lost:
        drop_output()
        if lost.abandoned:
            return 0
        print(f"malt: standard output could not be written: {lost}.", file=sys.stderr)
        return 2
    except RunStopped as stop:
        print("malt: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if gone := another_gone(error):
            print(f"malt: {one_line(gone)}", file=sys.stderr)
            return 1
        # Exceptions may quote a model or a file, so the traceback is made harmless as well.
        print(visible(traceback.format_exc()), end="", file=sys.stderr)
        print("malt: this is a fault of malt-jax, not of your input.", file=sys.stderr)
        return 1


def dispatch(words: list[str]) -> None:
    """Runs the command that `words` begin with."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
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
    if "-h" in rest or "--help" in rest:
        from malt_jax.commands.fields import field_lines

        print(help_text(commands[name], field_lines))
        return
    invocation = parse(commands[name], rest)
    invocation.command.run(invocation)


def all_commands() -> tuple[Command, ...]:
    """In the order the overview lists them."""
    from malt_jax.commands import ask, bench, completion, fields, init, lists, plan, pool, stage

    return (
        *stage.COMMANDS,
        pool.COMMAND,
        ask.COMMAND,
        plan.COMMAND,
        bench.COMMAND,
        init.COMMAND,
        *lists.COMMANDS,
        fields.COMMAND,
        completion.COMMAND,
    )


def overview() -> str:
    """The help of `malt` itself."""
    width = screen_width()
    lines = [
        "malt: trains a chain of language-model roles by tree search",
        "",
        "  malt COMMAND --config FILE.yaml [--FIELD VALUE ...]",
        "",
        "Commands",
    ]
    for command in all_commands():
        lines += row(f"  {command.name}", command.summary, width, column=14)
    lines += [
        "",
        "`malt COMMAND --help` tells more; `malt --version` names package, JAX, devices.",
        "Any field of the config is a flag: --task.num-train 200. Results go to standard",
        "output, progress to standard error. Exit status: 0 done, 2 your input is wrong,",
        "1 our fault, 130 or 143 stopped with the state saved.",
        "",
        "Examples",
        "  malt run --config quickstart",
        '  malt ask "2+9+3+3+2+8+9+6" --run runs/quickstart',
    ]
    return "\n".join(lines)


def version() -> str:
    """The package's version, those it computes with, and the devices it sees."""
    from malt_jax import __version__
    from malt_jax.commands.launch import devices
    from malt_jax.storage.provenance import versions

    found = versions()
    lines = [f"malt-jax {__version__}"]
    lines += [f"{name} {found[name]}" for name in ("jax", "flax", "python") if name in found]
    return "\n".join([*lines, f"device {', '.join(devices())}"])


if __name__ == "__main__":
    console()
