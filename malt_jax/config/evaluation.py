"""Which systems are measured, and the ablations beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from malt_jax.checks import check, check_name, show, whole_number
from malt_jax.config.pipeline import MAX_TURNS

MAX_VOTES = 1024
"""Draws of one system; a vote of more would only cost more."""
MAX_SYSTEM_NAME = 100
"""Longest name of a system in characters; names built from several roles may need them all."""
CANNOT_CHANGE_RESULTS = frozenset(
    {
        *(
            "output_dir",
            "mirror",
            "quiet",
            "wandb",
            "trackio",
            "export.merged",
            "export.push_to_hub",
            "sampler.cache_dir",
        ),
        "mesh",
    }
)
"""Fields a run may be continued with another value of."""


@dataclass(frozen=True)
class SystemConfig:
    """A system to evaluate: a chain of `role:policy` turns, and how many draws vote."""

    name: str
    """Its name in files and tables."""
    chain: tuple[str, ...]
    """Turns as `role:policy`; policies: base, sft, malt, star. `debate:POLICY` is a debate."""
    label: str = ""
    """What the table calls it; default: the name."""
    votes: tuple[int, ...] = (1, 3)
    """Majority votes to report, each over the first k draws."""

    def __post_init__(self):
        # `@` is left to the rows of its votes (`malt@3`), `trees` to those measured beside it.
        check_name(self.name, also=".+-", most=MAX_SYSTEM_NAME)
        check(self.name.casefold() != "trees", "name: 'trees' is a folder of eval; choose another.")
        turns = len(self.chain)
        check(1 <= turns <= MAX_TURNS, f"chain: found {turns} turns, allowed: 1 to {MAX_TURNS}.")
        check(
            len(self.votes) >= 1 and 1 <= min(self.votes) <= max(self.votes) <= MAX_VOTES,
            f"votes: found {show(self.votes)}, allowed: 1 to {MAX_VOTES} each.",
        )
        twice = len(set(self.votes)) < len(self.votes)
        check(not twice, f"votes: found {show(self.votes)}; give each number once.")


@dataclass(frozen=True)
class EvalConfig:
    """Measuring systems on the same questions with the same keys."""

    systems: tuple[str, ...] = ()
    """Which of the built-in systems to measure; default: all of them."""
    extra: tuple[SystemConfig, ...] = ()
    """Systems of your own."""
    baseline: str = "sa@9"
    """The row every other is tested against."""
    block: int = 1024
    """Questions evaluated together and committed together."""
    trees: int = 32
    """Held-out questions whose whole trees are drawn before and after training; 0: none."""
    confidence: float = 0.95
    """Of the intervals."""

    def __post_init__(self):
        check(self.block >= 1, f"block: found {self.block}, allowed: 1 or more.")
        check(self.trees >= 0, f"trees: found {self.trees}, allowed: 0 (none) or more.")
        name, _, votes = self.baseline.rpartition("@")
        check(
            not name or 1 <= (whole_number(votes) or 0) <= MAX_VOTES,
            f"baseline: found {show(self.baseline)}, allowed: a row of the table, as sa@9 "
            f"with 1 to {MAX_VOTES} votes.",
        )
        check(
            0.5 <= self.confidence < 1,
            f"confidence: found {self.confidence}, allowed: 0.5 to below 1.",
        )


@dataclass(frozen=True)
class Ablation:
    """A variant of the run: some fields changed, everything unaffected reused."""

    name: str
    """Its folder under RUN/ablations and its name in the table."""
    set: dict[str, Any]
    """Dotted fields and their values, as `search.backup: max`."""
    label: str = ""
    """What the table calls it, after `MALT, `; default: its fields and values."""

    def __post_init__(self):
        check_name(self.name, also="-")
        check(bool(self.set), "set: found nothing; a variant changes at least one field.")
        for key in self.set:
            field = key.replace("-", "_")
            beside = ("ablations", "eval", *CANNOT_CHANGE_RESULTS)
            check(
                not any(field == name or field.startswith(f"{name}.") for name in beside),
                f"set: {show(key)} cannot differ between a run and its variant, which is "
                "measured as the run is; leave it out.",
            )
