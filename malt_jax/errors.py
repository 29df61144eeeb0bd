"""The exceptions that end a command on purpose."""

from __future__ import annotations

from malt_jax.escape import one_line


class UserError(Exception):
    """The user's input is wrong: exit status 2 and this one message, without a traceback.

    The message says where (file, line or field), what was found, what is allowed and what to
    change. Text that it quotes from a file or a model cannot add a second line to it.
    """

    status = 2
    """The exit status of a command that it ends."""

    def __init__(self, message: str):
        super().__init__(one_line(message))

    def at(self, place: str) -> UserError:
        """The same error, with the config field or flag whose value is wrong before its message."""
        placed = UserError(f"{place}: {self}")
        placed.status = self.status
        return placed


class Unavailable(UserError):
    """Something outside this process does not answer, such as a store: exit status 75.

    The input may be right, so the launchers start the command again. (75 is EX_TEMPFAIL of
    sysexits.h, a failure that may pass.)
    """

    status = 75


class HubError(UserError):
    """A model or a data set could not be loaded from the hub.

    Its exit status is 75 if the hub did not answer, and 2 if it refused what was asked for.
    """

    def __init__(self, message: str, cause: BaseException):
        super().__init__(message)
        if _unanswered(cause):
            self.status = Unavailable.status


def _unanswered(error: BaseException | None) -> bool:
    """Whether an error of a hub's client, or one that it came from, means that a try may help."""
    lost = False
    while error is not None:
        # The clients build on different HTTP libraries, so errors are recognised by their names.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "OfflineModeIsEnabled" in kinds:
            return False
        code = getattr(getattr(error, "response", None), "status_code", None)
        if code is not None:
            return code >= 500 or code in (408, 429)
        lost |= bool(kinds & {"ConnectionError", "TransportError", "Timeout", "TimeoutError"})
        error = error.__cause__ or error.__context__
    return lost


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RunStopped(Exception):
    """The run was asked to stop (SIGTERM or Ctrl-C) and its state is saved: exit 143 or 130."""

    def __init__(
        self, signal_number: int, message: str = "stopped; the same command continues from here"
    ):
        super().__init__(message)
        self.signal_number = signal_number
