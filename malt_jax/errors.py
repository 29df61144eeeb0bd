"""The exceptions that end a command on purpose."""

from __future__ import annotations

from malt_jax.escape import one_line


class UserError(Exception):
    """The user's input is wrong: exit status 2 and this one message, without a traceback.

    The message says where (file, line or field), what was found, what is allowed and what to
    change. Text that it quotes from a file or a model cannot add a second line to it.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class HubError(UserError):
    """A model or a data set could not be loaded from the hub."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RunStopped(Exception):
    """The run was asked to stop (SIGTERM or Ctrl-C) and its state is saved: exit 143 or 130."""

    def __init__(
        self, signal_number: int, message: str = "stopped; the same command continues from here"
    ):
        super().__init__(message)
        self.signal_number = signal_number
