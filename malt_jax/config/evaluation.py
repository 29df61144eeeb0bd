"""The systems to evaluate, and the ablations of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from malt_jax.checks import check, check_name, show, whole_number
from malt_jax.config.pipeline import MAX_TURNS

MAX_VOTES = 1024
"""Most draws of one system in a vote; more would only cost more."""
MAX_SYSTEM_NAME = 100
"""Longest name of a system in characters, enough for names built from several roles."""
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
"""Fields whose value may change when a run is continued: they cannot change its results."""


@dataclass(frozen=True)
class SystemConfig:
    """A system to evaluate: a chain of `role:policy` turns, and the number of draws that vote."""

    name: str
    """Its name in files and tables."""
    chain: tuple[str, ...]
    """Turns as `role:policy`; policies: base, sft, malt, star. `debate:POLICY` is a debate."""
    label: str = ""
    """Its label in the table; default: the name."""
    votes: tuple[int, ...] = (1, 3)
    """Majority votes to report, each over the first k draws."""

    def __post_init__(self):
        # `@` separates the votes in the names of rows (`malt@3`); `eval/trees` holds trees.
        check_name(self.name, also=".+-", most=MAX_SYSTEM_NAME)
        check(
            self.name.casefold() != "trees",
            "name: found 'trees', which is a folder of eval; choose another name.",
        )
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
    """The evaluation of systems on the same questions with the same random keys."""

    systems: tuple[str, ...] = ()
    """Built-in systems to evaluate; default: all of them."""
    extra: tuple[SystemConfig, ...] = ()
    """Your own systems."""
    baseline: str = "sa@9"
    """The row of the table that every other row is tested against."""
    block: int = 1024
    """Questions that are evaluated together and saved together."""
    trees: int = 32
    """Held-out questions that are searched as whole trees before and after training; 0: none."""
    confidence: float = 0.95
    """Confidence level of the intervals."""

    def __post_init__(self):
        check(self.block >= 1, f"block: found {self.block}, allowed: 1 or more.")
        check(self.trees >= 0, f"trees: found {self.trees}, allowed: 0 (none) or more.")
        name, _, votes = self.baseline.rpartition("@")
        check(
            not name or 1 <= (whole_number(votes) or 0) <= MAX_VOTES,
            f"baseline: found {show(self.baseline)}, allowed: a row of the table, for example sa@9 "
            f"with 1 to {MAX_VOTES} votes.",
        )
        check(
            0.5 <= self.confidence < 1,
            f"confidence: found {self.confidence}, allowed: 0.5 to below 1.",
        )


@dataclass(frozen=True)
class Ablation:
    """A variant of the run: some fields change, and every unaffected stage is reused."""

    name: str
    """Its folder below RUN/ablations and its name in the table."""
    set: dict[str, Any]
    """Dotted fields and their values, for example `search.backup: max`."""
    label: str = ""
    """Its label in the table, after `MALT, `; default: its fields and values."""

    def __post_init__(self):
        check_name(self.name, also="-")
        check(bool(self.set), "set: found nothing; a variant must change at least one field.")
        for key in self.set:
            field = key.replace("-", "_")
            beside = ("ablations", "eval", *CANNOT_CHANGE_RESULTS)
            check(
                not any(field == name or field.startswith(f"{name}.") for name in beside),
                f"set: found {show(key)}, which cannot differ between a run and its variant; "
                "leave it out.",
            )
