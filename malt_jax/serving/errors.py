"""Refusals as the error objects of the OpenAI API, which its clients turn into exceptions."""

from __future__ import annotations

from typing import Any

from malt_jax.errors import UserError
from malt_jax.escape import visible
from malt_jax.tree.prompts import TooLong

INVALID, AUTHENTICATION, OVERLOADED, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "overloaded_error",
    "server_error",
)


class ApiError(Exception):
    """An answer with an HTTP status other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        """`param`: the field of the request that is wrong. `retry_after`: seconds."""
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.param = code, param
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {
            "error": {
                # A name from the request may hold half a character, which no JSON can.
                "message": visible(self.message),
                "type": self.kind,
                "param": self.param and visible(self.param),
                "code": self.code,
            }
        }


def wrong(param: str, message: str, code: str | None = None) -> ApiError:
    """A field of the request that is wrong."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def closing() -> ApiError:
    return ApiError(
        503, "the server is shutting down; ask again elsewhere or later.",
        kind=OVERLOADED, code="shutting_down", retry_after=10,
    )  # fmt: skip


def not_graded(error: UserError) -> ApiError:
    return ApiError(500, str(error), kind=SERVER, code="grader_failed")


def too_long(error: UserError) -> ApiError:
    """A prompt that leaves its completion no room."""
    message = str(error)
    if isinstance(error, TooLong):
        message = f"{error.finding}; shorten the question, or lower max_tokens."
    return ApiError(400, message, code="context_length_exceeded", param="messages")


def too_slow(seconds: float) -> ApiError:
    return ApiError(
        503, f"not answered within {seconds:g} s (the server's --timeout); ask again later.",
        kind=OVERLOADED, code="timeout", retry_after=10,
    )  # fmt: skip
