"""The chain of roles and how each of them samples."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from malt_jax.checks import check, check_name, check_path, check_range, check_unique, show
from malt_jax.config.reading import ONE_TEXT
from malt_jax.config.thinking import ThinkingConfig

MAX_CALLS = 1_000_000
"""The most completions in the tree of one question; they are in memory together."""
MAX_TURNS = 64
"""The most turns of a pipeline or a system."""
_RESERVED = {
    "question": "a placeholder of templates",
    "previous": "a placeholder of templates",
    "others": "a placeholder of templates",
    "star": "the single-agent baseline, which is trained beside the roles",
}
"""Names that no role can have, and what they stand for."""
PHASES = ("sft", "dpo", "kto", "pg")
"""The phases of training in their order; each begins with the weights that the one before left."""


def split_phases(train: str) -> tuple[str, ...]:
    """The phases that a role's `train` names."""
    return () if train == "none" else tuple(train.split("+"))


@dataclass(frozen=True)
class RoleConfig:
    """One turn of the pipeline."""

    name: str = "generator"
    """The role's name; the templates of later roles refer to its turn by this name."""
    template: str | None = None
    """The prompt with `{question}` and `{<earlier role>}` filled in; default: the task's own."""
    system: str | None = None
    """A system message before the prompt; default: whatever the model's chat template has."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's chat template, such as `enable_thinking: false` (Qwen3, SmolLM3) or
    `reasoning_effort: low` (gpt-oss)."""
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    branch: int = 3
    """Completions per prefix of this role in the search."""
    temperature: float = 0.3
    """Sampling temperature; 0 takes the likeliest token. The paper uses 0.3 for 8B models."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this probability; 1: all."""
    top_k: int = 0
    """Sample from this many likeliest tokens only; 0: all."""
    max_new_tokens: int = 512
    """The longest completion in tokens, the end token included."""
    stop: tuple[str, ...] = field(default=(), metadata=ONE_TEXT)
    """Texts that end the turn besides the model's end tokens. A base model without a chat template
    continues with a next question of its own, whose answer would be graded: stop it there."""
    train: str = "sft+dpo"
    """How this role is trained: `none`, or phases joined with `+` in the order `sft` (fine-tuning),
    `dpo` (pairs), `kto` (unpaired completions), `pg` (clipped policy gradient). The paper trains
    the generator by `sft` and the others by `sft+dpo`."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of `train` that this role has of its own, such as `lora.rank`, `sft.epochs` or
    `dpo.optim.learning_rate`; those of the run where it has none."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of `model` that this role's base model has of its own, such as `path` or `quantize`;
    those of the run where it has none. The first role answers with the run's model."""
    adapter: str | None = None
    """A PEFT adapter that this role starts from, a folder or a hub name; default: none. The role is
    sampled and measured with it from the first round on, and trained further from there."""
    answers: bool = True
    """Whether an answer is read from this turn; the last answer is the prediction."""
    verdict: str = "auto"
    """How a judgement of the answer before is read from this turn, to see whether it fits and to
    weigh votes by it: `auto` (phrases such as "every step is right", of a turn that does not answer
    itself), `none`, or `module:attribute` of your function from a text to True, False or None."""

    def __post_init__(self):
        check_name(self.name)
        check(not self.name[0].isdigit(), f"name: found {self.name!r}, which begins with a digit.")
        phases = split_phases(self.train)
        check(
            self.train != "" and phases == tuple(p for p in PHASES if p in phases),
            f"train: found {self.train!r}, allowed: none, or phases of {', '.join(PHASES)} joined "
            "with + in this order, each once, such as sft+kto.",
        )
        check(
            self.verdict in ("auto", "none") or ":" in self.verdict,
            f"verdict: found {self.verdict!r}, allowed: auto, none or module:attribute.",
        )
        check(
            self.template != "",
            "template: found an empty text, as an unset variable gives; leave it out for the "
            "task's own.",
        )
        check_path("adapter", self.adapter)
        check(all(self.stop), "stop: found an empty text; give texts of one character or more.")
        check_range(self, "branch", least=1, most=64)
        check_range(self, "temperature", least=0, most=10)
        check_range(self, "top_p", above=0, most=1)
        check_range(self, "top_k", least=0, zero="off", most=(1 << 31) - 1)
        check_range(self, "max_new_tokens", least=1, most=1 << 17)
        check(
            self.thinking.budget < self.max_new_tokens,
            f"thinking.budget: found {self.thinking.budget}, allowed: below max_new_tokens "
            f"({self.max_new_tokens}), which holds the answer as well.",
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
    """The roles in the order of their turns."""
    overflow: Literal["refuse", "truncate"] = "refuse"
    """For a prompt longer than the context: refuse the run, or cut the longest turn's front."""

    def __post_init__(self):
        names = [role.name for role in self.roles]
        check(len(names) >= 1, "roles: found none; a pipeline has at least one role.")
        check(len(names) <= MAX_TURNS, f"roles: found {len(names)}, allowed: 1 to {MAX_TURNS}.")
        check_unique("roles", names)
        for index, name in enumerate(names):
            # Templates of a debate call the others `other_1`, `other_2`, so these names are taken
            # too.
            known = re.sub("^other_[0-9]+$", "others", name.casefold())
            check(
                known not in _RESERVED,
                f"roles.{index}.name: {name!r} is {_RESERVED.get(known)}; choose another.",
            )
        branches = [role.branch for role in self.roles]
        # The nodes of all depths: n + n^2 + n^3 for three roles with n branches each.
        calls = sum(math.prod(branches[: depth + 1]) for depth in range(len(branches)))
        check(
            calls <= MAX_CALLS,
            f"roles: their branches make {show(calls)} completions per question, allowed: "
            f"at most {MAX_CALLS:,}; lower a branch.",
        )
        check(self.roles[-1].answers, "roles: the last role must answer (answers: true).")

    def training_of(self, policy: str) -> dict[str, Any]:
        """Fields of `train` that a policy has of its own.

        The STaR single agent learns as the first role does, whose drafts it learns from.
        """
        own = {"star": self.roles[0].training} | {role.name: role.training for role in self.roles}
        return own.get(policy, {})
