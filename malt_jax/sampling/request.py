"""What goes into the sampler and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt32

from malt_jax.errors import UserError

MAX_END_IDS = 16


@dataclass(frozen=True)
class Request:
    """One prompt and the keys of its completions: one completion is drawn for each key."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    keys: UInt32[np.ndarray, "n 2"]
    """Threefry keys. The t-th token of completion i is drawn with `fold_in(keys[i], t)`, so it
    depends on nothing else that happens to be in the batch."""


@dataclass(frozen=True)
class Settings:
    """How tokens are drawn and when a completion ends. All of it is traced: nothing recompiles."""

    temperature: float = 0.3
    """0 takes the most likely token."""
    top_k: int = 0
    """Draw among the k most likely tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the fewest most likely tokens whose probability sums to at least this."""
    max_new_tokens: int = 512
    """Longest completion, end token included."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a completion; they are kept in it."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, after the token that completes them."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature is {self.temperature}: it must be 0 or more")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: it must be above 0 and at most 1 (off)")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if len(self.end_ids) > MAX_END_IDS:
            raise UserError(f"end_ids has {len(self.end_ids)} tokens: at most {MAX_END_IDS}")
        if any(not text for text in self.stop):
            raise UserError("stop holds an empty text: give texts of at least one character")


@dataclass(frozen=True)
class Completion:
    tokens: tuple[int, ...]
    """Generated ids, the end token included."""
    logprobs: tuple[float, ...]
    """Each token's log-probability under the model itself: temperature 1, nothing filtered."""
    finish: str
    """`eos`: an end token; `stop`: a stop text; `length`: `max_new_tokens`."""
