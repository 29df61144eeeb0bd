"""The chain of roles and how each of them samples."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from malt_jax.checks import check, check_name, check_unique, show
from malt_jax.config.reading import ONE_TEXT

MAX_CALLS = 1_000_000
"""Completions in the tree of one question; all of them are in memory together."""
MAX_TURNS = 64
"""Turns of a pipeline or a system."""
_MEANS_ELSE = {
    "question": "a placeholder of templates",
    "previous": "a placeholder of templates",
    "others": "a placeholder of templates",
    "star": "the single-agent baseline, which is trained beside the roles",
}
"""Names no role can have, and what they stand for."""


@dataclass(frozen=True)
class RoleConfig:
    """One turn of the pipeline."""

    name: str = "generator"
    """The role's name; later templates refer to this turn by it."""
    template: str | None = None
    """The role prefix with `{question}` and `{<earlier role>}`; default: the task's own."""
    branch: int = 3
    """Completions drawn from each prefix of this role in the search."""
    temperature: float = 0.3
    """Sampling temperature; 0 takes the likeliest token. 0.3 is the published one for 8B models."""
    top_p: float = 1.0
    """Smallest set of tokens with at least this probability; 1: all."""
    top_k: int = 0
    """Only this many likeliest tokens; 0: all."""
    max_new_tokens: int = 512
    """Longest completion, in tokens with the end token."""
    stop: tuple[str, ...] = field(default=(), metadata=ONE_TEXT)
    """Texts that end the turn besides the model's end tokens."""
    train: Literal["none", "sft", "sft+dpo"] = "sft+dpo"
    """What this role learns; the published generator is SFT only."""
    answers: bool = True
    """Whether an answer is read from this turn; the last turn that answers gives the prediction."""

    def __post_init__(self):
        check_name(self.name)
        check(not self.name[0].isdigit(), f"name: found {self.name!r}, which begins with a digit.")
        check(all(self.stop), "stop: found an empty text; give texts of one character or more.")
        check(1 <= self.branch <= 64, f"branch: found {self.branch}, allowed: 1 to 64.")
        check(
            0 <= self.temperature <= 10,
            f"temperature: found {self.temperature}, allowed: 0 to 10.",
        )
        check(0 < self.top_p <= 1, f"top_p: found {self.top_p}, allowed: above 0, at most 1.")
        check(0 <= self.top_k < 1 << 31, f"top_k: found {self.top_k}, allowed: 0 (off) or more.")
        check(
            1 <= self.max_new_tokens <= 1 << 17,
            f"max_new_tokens: found {self.max_new_tokens}, allowed: 1 to 131072.",
        )


def _default_roles() -> tuple[RoleConfig, ...]:
    return (
        RoleConfig("generator", train="sft"),
        RoleConfig("verifier", answers=False),
        RoleConfig("refiner"),
    )


@dataclass(frozen=True)
class PipelineConfig:
    """The chain of roles; any names, any depth."""

    roles: tuple[RoleConfig, ...] = field(default_factory=_default_roles)
    """In the order of their turns."""
    overflow: Literal["refuse", "truncate"] = "refuse"
    """A prompt longer than the context: refuse the run, or cut the longest earlier turn's front."""

    def __post_init__(self):
        names = [role.name for role in self.roles]
        check(len(names) >= 1, "roles: found none; a pipeline has at least one role.")
        check(len(names) <= MAX_TURNS, f"roles: found {len(names)}, allowed: 1 to {MAX_TURNS}.")
        check_unique("roles", names)
        for index, name in enumerate(names):
            known = re.sub("^other_[0-9]+$", "others", name.casefold())
            check(
                known not in _MEANS_ELSE,
                f"roles.{index}.name: {name!r} is {_MEANS_ELSE.get(known)}; choose another.",
            )
        branches = [role.branch for role in self.roles]
        calls = sum(math.prod(branches[: depth + 1]) for depth in range(len(branches)))
        check(
            calls <= MAX_CALLS,
            f"roles: their branches make {show(calls)} completions a question, allowed: "
            f"at most {MAX_CALLS:,}; lower a branch.",
        )
        check(self.roles[-1].answers, "roles: the last role must answer (answers: true).")
