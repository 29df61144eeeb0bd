"""What the sampler takes and returns: requests, sampling parameters and completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt32

from malt_jax.checks import check
from malt_jax.models.thoughts import AnyThoughts

MAX_END_IDS = 16
MAX_ENDING = 8
"""Tokens in a row that end a thought, at most."""
MAX_CLOSING = 128
"""Tokens that are written to close a thought, at most."""

MAX_BLANK = 4096
"""Tokens of white space, at most."""


@dataclass(frozen=True)
class Request:
    """One prompt with the random keys of its completions: one completion is drawn per key."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    keys: UInt32[np.ndarray, "n 2"]
    """Threefry keys. Token t of completion i is drawn with `fold_in(keys[i], t)`, so a completion
    does not depend on what else is in the batch."""
    policy: int = 0
    """Index of the policy, among the call's, that draws its completions."""
    order: tuple[int, ...] = ()
    """Prompts of a lower order are prefilled first; equal ones in the order of their tokens."""
    kind: str = ""
    """Completions of one kind have similar lengths; every stream gets its share of each kind."""
    tag: Any = None
    """What the caller knows the request by; the sampler does not look at it."""


@dataclass(frozen=True)
class ThoughtBudget:
    """Ends a thought that takes too many tokens, by writing the tokens that close it."""

    tokens: int
    """From so many tokens of the completion on, an open thought is closed."""
    begin: int
    """The token that begins a thought."""
    end: tuple[int, ...]
    """The tokens, in a row, that end it."""
    closing: tuple[int, ...]
    """What is written to close it; `end` is part of it."""
    inside: bool
    """Completions begin within a thought."""
    blank: frozenset[int] = frozenset()
    """Tokens of white space, which may stand before a thought."""

    def __post_init__(self) -> None:
        check(self.tokens >= 1, f"thought: found a budget of {self.tokens}, allowed: 1 or more.")
        size, limit = len(self.end), MAX_CLOSING
        check(
            1 <= size <= MAX_ENDING and self.end[0] not in self.end[1:],
            f"thought: found {size} tokens that end it, allowed: 1 to {MAX_ENDING}, the first of "
            "which is not repeated.",
        )
        check(
            len(self.closing) <= limit,
            f"thought: closing it takes {len(self.closing)} tokens, allowed: at most {limit}; "
            "shorten the conclusion.",
        )
        places = range(len(self.closing) - size + 1)
        check(
            any(self.closing[i : i + size] == self.end for i in places),
            "thought: the tokens that close it do not end it.",
        )
        blanks = len(self.blank)
        check(
            blanks <= MAX_BLANK,
            f"thought: found {blanks} tokens of white space, allowed: at most {MAX_BLANK}.",
        )


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn and when a completion ends.

    The device gets these as traced values, so that other parameters compile nothing.
    """

    temperature: float = 0.3
    """0 takes the most likely token."""
    top_k: int = 0
    """Draw among the k most likely tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the fewest most likely tokens whose probabilities sum to at least this."""
    max_new_tokens: int = 512
    """Longest completion in tokens, end token included."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a completion; they are kept in it."""
    thought: ThoughtBudget | None = None
    """Limits the thought at a completion's beginning; None: it is drawn like anything else."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, after the token that completes them."""
    thoughts: AnyThoughts | None = None
    """How completions write thoughts, in which no stop text is looked for; None: they have none."""

    def __post_init__(self) -> None:
        check(self.temperature >= 0, f"temperature: found {self.temperature}, allowed: 0 or more.")
        check(self.top_k >= 0, f"top_k: found {self.top_k}, allowed: 0 (off) or more.")
        check(0 < self.top_p <= 1, f"top_p: found {self.top_p}, allowed: above 0, at most 1 (off).")
        longest = self.max_new_tokens
        check(longest >= 1, f"max_new_tokens: found {longest}, allowed: 1 or more.")
        ends = len(self.end_ids)
        check(ends <= MAX_END_IDS, f"end_ids: found {ends} tokens, allowed: at most {MAX_END_IDS}.")
        check(all(self.stop), "stop: found an empty text, allowed: texts of one character or more.")


@dataclass(frozen=True)
class Policy:
    """What a completion is drawn with."""

    params: SamplingParams
    adapter: Any = None
    """An adapter over the model, or whole weights in its place; None: the model itself."""


@dataclass(frozen=True)
class Completion:
    """One completion as it was drawn."""

    tokens: tuple[int, ...]
    """Generated ids, end token included."""
    logprobs: tuple[float, ...]
    """Log-probability per token under the model itself: temperature 1, nothing filtered out."""
    finish: str
    """Why it ended. `eos`: an end token; `stop`: a stop text; `length`: `max_new_tokens`."""
