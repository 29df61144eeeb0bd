"""Budgets of thoughts on the device: an open thought that takes too long is closed.

From its budget on, the tokens of the closing text are written in place of what is drawn, one per
step, so that the model continues after them with its answer. Their log-probabilities are recorded
as the model's own. Calls without a budget have none of this in their programs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from malt_jax.sampling.request import MAX_BLANK, MAX_CLOSING, MAX_ENDING, ThoughtBudget

DRAWN = -1
"""In place of a forced token: the step draws its own."""
OUTSIDE = -1
"""`matched` of a completion that has only white space so far, so that a thought may begin."""


_NO_BUDGET = ThoughtBudget(2**31 - 1, 0, (0,), (0,), inside=True)


class Budget(NamedTuple):
    """A `ThoughtBudget` on the device; token lists are padded with -1."""

    tokens: Int[Any, ""]
    begin: Int[Any, ""]
    end: Int[Any, "e"]
    closing: Int[Any, "c"]
    blank: Int[Any, "b"]


class Thoughts(NamedTuple):
    """How far the thought of each row's completion is."""

    matched: Int[Any, "R"]  # of the tokens that end it, those just seen; all: it is over
    forced: Int[Any, "R"]  # tokens of the closing text written so far


def budget_arrays(budget: ThoughtBudget | None) -> Budget:
    """The budget as arrays of fixed sizes, so that another one compiles nothing.

    None, in a call whose other policies have one, is a budget that no completion reaches.
    """
    budget = budget or _NO_BUDGET

    def padded(tokens: tuple[int, ...], size: int) -> np.ndarray:
        return np.array((*tokens, *[-1] * (size - len(tokens))), np.int32)

    return Budget(
        np.int32(budget.tokens),
        np.int32(budget.begin),
        padded(budget.end, MAX_ENDING),
        padded(budget.closing, MAX_CLOSING),
        padded(tuple(sorted(budget.blank)), MAX_BLANK),
    )


def first_thoughts(budget: ThoughtBudget | None, *shape: int) -> Thoughts:
    """The thoughts of completions that have no token yet."""
    budget = budget or _NO_BUDGET
    matched = np.full(shape, 0 if budget.inside else OUTSIDE, np.int32)
    return Thoughts(matched, np.zeros(shape, np.int32))


def forced_token(budget: Budget, thoughts: Thoughts, length: Int[Array, "R"]) -> Int[Array, "R"]:
    """The token that closes an overlong thought, or DRAWN; `length` tokens are there already."""
    ended = thoughts.matched == _count(budget.end)
    open_too_long = ~ended & (thoughts.matched != OUTSIDE) & (length >= budget.tokens)
    # Once begun, the closing text is written whole: what ends the thought may stand before its end.
    begun = (thoughts.forced > 0) & (thoughts.forced < _count(budget.closing))
    place = jnp.minimum(thoughts.forced, budget.closing.shape[0] - 1)
    return jnp.where(open_too_long | begun, budget.closing[place], DRAWN)


def advance(
    budget: Budget, thoughts: Thoughts, token: Int[Array, "R"], forced: Int[Array, "R"]
) -> Thoughts:
    """The thoughts after one more token of each row."""
    matched = thoughts.matched
    size = _count(budget.end)
    expected = budget.end[jnp.clip(matched, 0, budget.end.shape[0] - 1)]
    # The first of the ending tokens is not repeated among them, so that a match which fails can
    # begin again with this token only.
    further = jnp.where(token == expected, matched + 1, jnp.where(token == budget.end[0], 1, 0))
    # A completion that begins with anything else has no thought, as if it had ended already.
    blanks = budget.blank.reshape(*(1,) * token.ndim, -1)
    blank = jnp.any(token[..., None] == blanks, axis=-1)
    begun = jnp.where(token == budget.begin, 0, jnp.where(blank, OUTSIDE, size))
    matched = jnp.where(matched == size, size, jnp.where(matched == OUTSIDE, begun, further))
    return Thoughts(matched, thoughts.forced + (forced != DRAWN).astype(jnp.int32))


def _count(tokens: Int[Array, "n"]) -> Int[Array, ""]:
    """How many tokens there are before the padding."""
    return jnp.sum(tokens >= 0, dtype=jnp.int32)
