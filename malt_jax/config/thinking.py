"""How a role of a thinking model thinks: for how long, and who reads its thoughts."""

from __future__ import annotations

from dataclasses import dataclass

from malt_jax.checks import check, check_range


@dataclass(frozen=True)
class ThinkingConfig:
    """A role's thoughts, with models whose chat template has them (Qwen3, R1, gpt-oss)."""

    budget: int = 0
    """The most tokens of a thought. A longer one is ended in the model's place: the tokens that
    close it are written and the answer begins. 0: only `max_new_tokens` ends it."""
    conclusion: str = ""
    """Text written before a thought is closed by its budget, such as "Considering the limited time
    by the user, I have to give the solution based on the thinking directly now." for Qwen3."""
    pass_on: bool = False
    """Whether later roles read this role's thoughts before its answer. By default they read the
    answer alone, and an unclosed thought leaves them nothing to read."""

    def __post_init__(self):
        check_range(self, "budget", least=0, most=1 << 17, zero="off")
        check(
            not self.conclusion or self.budget > 0,
            f"conclusion: found {self.conclusion!r} without a budget, which alone writes it; set "
            "budget as well.",
        )
