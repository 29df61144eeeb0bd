"""Which systems are evaluated, and the ablations of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from malt_jax.checks import check, check_name, check_range, check_unique, show, whole_number
from malt_jax.config.pipeline import MAX_TURNS
from malt_jax.config.reading import dotted

MAX_VOTES = 1024
"""The most draws that one system may vote over."""
MAX_SYSTEM_NAME = 100
"""The longest name of a system in characters; names built from several roles are long."""
CANNOT_CHANGE_RESULTS = frozenset(
    {
        "output_dir",
        "mirror",
        "mirror_seconds",
        "save_minutes",
        "quiet",
        "wandb",
        "trackio",
        "export.dataset",
        "export.merged",
        "export.push_to_hub",
        "sampler.cache_dir",
        "mesh",
    }
)
"""Fields whose values may differ when a run is continued."""


@dataclass(frozen=True)
class SystemConfig:
    """A system to evaluate: a chain of `role:policy` turns, sampled several times for a vote."""

    name: str
    """Its name in files and tables."""
    chain: tuple[str, ...]
    """Turns as `role:policy`; policies: base, sft, malt, star. `debate:POLICY` is a debate."""
    label: str = ""
    """What tables call it; default: the name."""
    votes: tuple[int, ...] = (1, 3)
    """Majority votes to report, each over the first k draws."""

    def __post_init__(self):
        # `@` separates a system from its votes in the names of rows, as in `malt@3`. `eval/trees`
        # is the folder of the held-out trees.
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
    """Evaluation of all systems on the same questions with the same random keys."""

    systems: tuple[str, ...] = ()
    """Which of the built-in systems to evaluate; default: all of them."""
    extra: tuple[SystemConfig, ...] = ()
    """Systems of your own."""
    baseline: str = "sa@9"
    """The row of the table that every other row is tested against."""
    block: int = 1024
    """Questions that are evaluated and saved together."""
    trees: int = 32
    """Held-out questions whose whole trees are drawn before and after training; 0: none."""
    confidence: float = 0.95
    """Coverage of the confidence intervals."""
    split: str = "eval"
    """The split of the task that is evaluated; most tasks have `train` and `eval`. `validation`:
    the questions that `task.num_validation` set aside, to choose settings by."""
    temperatures: tuple[float, ...] = ()
    """Evaluate every system at each of these; default: once, at the roles' own temperatures."""
    stop_when_certain: bool = False
    """Draw no more of a question once none of its votes can change. Tokens and seconds of votes are
    then estimated, and pass@k and weighted votes are not known."""
    models: tuple[str, ...] = ()
    """Hugging Face folders or PEFT adapters to evaluate beside it, as systems of one role."""

    def __post_init__(self):
        check_range(self, "block", least=1)
        check_range(self, "trees", least=0, zero="none")
        check_range(self, "confidence", least=0.5, below=1)
        # Temperatures as systems are named by them, and draws kept.
        named = [f"{temperature:g}" for temperature in self.temperatures]
        for name, found in (("temperatures", named), ("models", self.models)):
            twice = len(set(found)) < len(found)
            check(not twice, f"{name}: found {show(found)}; give each one once.")
        inside = all(0 <= temperature <= 10 for temperature in self.temperatures)
        check(inside, f"temperatures: found {show(self.temperatures)}, allowed: 0 to 10 each.")
        # Without an @ the whole text is a name, and no number of votes is there to check.
        name, _, votes = self.baseline.rpartition("@")
        check(
            not name or 1 <= (whole_number(votes) or 0) <= MAX_VOTES,
            f"baseline: found {show(self.baseline)}, allowed: a row of the table, "
            f"for example sa@9, with 1 to {MAX_VOTES} votes.",
        )


@dataclass(frozen=True)
class Ablation:
    """A variant of the run: some fields changed, all stages reused that they do not affect."""

    name: str
    """Its folder under RUN/ablations and its name in tables."""
    set: dict[str, Any] = field(default_factory=dict)
    """Dotted fields and their values, for example `search.backup: max`; a mapping is laid over the
    run's."""
    rule: str = ""
    """A credit rule by its name in `malt label --preview`, whose fields are set before these."""
    label: str = ""
    """What tables call it, after `MALT, `; default: its fields and values."""

    def __post_init__(self):
        check_name(self.name, also="-")
        some = bool(self.set) or bool(self.rule)
        check(some, "set: found nothing; a variant changes at least one field, or names a rule.")
        check_unique("set", [key.replace("-", "_") for key, _ in dotted(self.set)])
        for changed in self.changes:
            # A field of this list counts with everything below it.
            beside = ("ablations", "eval", *CANNOT_CHANGE_RESULTS)
            check(
                not any(changed == name or changed.startswith(f"{name}.") for name in beside),
                f"set: {show(changed)} cannot differ between a run and its variant, which is "
                "measured as the run is; leave it out.",
            )

    @property
    def changes(self) -> dict[str, Any]:
        """Every field that `set` gives, by its dotted name, however it is spelled there."""
        return {name.replace("-", "_"): value for name, value in dotted(self.set)}
