"""Credit rules by name: what is selected from a forest, and by which phases roles learn it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from malt_jax.checks import nearest
from malt_jax.config.data import DataConfig
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.config.training import TrainConfig
from malt_jax.errors import UserError


@dataclass(frozen=True)
class Rule:
    """How nodes become training examples, and how roles learn from them beyond imitation."""

    summary: str
    data: Mapping[str, str] = field(default_factory=dict)
    """Fields of `DataConfig`; the other ones of `CREDIT` have their defaults."""
    train: str = "sft+dpo"
    """`RoleConfig.train` of the roles that do more than SFT; the others stay as they are."""
    offset: float = 0.0
    """`DpoConfig.offset`. 0 unless the rule has margins: one does nothing without the other."""

    def selection(self, base: DataConfig | None = None) -> DataConfig:
        """The rule's selection; how many pairs there are, `base` says."""
        default = DataConfig()
        chosen = {name: self.data.get(name, getattr(default, name)) for name in CREDIT}
        return replace(base or default, **chosen)

    def settings(self, pipeline: PipelineConfig) -> dict[str, Any]:
        """The config fields that make this rule a run's, by their dotted names."""
        chosen = self.selection()
        phases = {
            f"pipeline.roles.{index}.train": self._phases_of(role)
            for index, role in enumerate(pipeline.roles)
        }
        fields = {f"data.{name}": getattr(chosen, name) for name in CREDIT}
        return fields | {"train.dpo.offset": self.offset} | phases

    def in_training(
        self, pipeline: PipelineConfig, train: TrainConfig
    ) -> tuple[PipelineConfig, TrainConfig]:
        """The phases of every role and the fields of the losses under this rule."""
        roles = tuple(replace(role, train=self._phases_of(role)) for role in pipeline.roles)
        dpo = replace(train.dpo, offset=self.offset)
        return replace(pipeline, roles=roles), replace(train, dpo=dpo)

    def _phases_of(self, role: RoleConfig) -> str:
        return role.train if role.train in ("none", "sft") else self.train


CREDIT = ("positives", "weights", "margins", "advantage")
"""The fields of `DataConfig` that a rule decides."""
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "published": Rule("MALT as published: positive iff V > theta"),
        "advantage": Rule("positive iff better than its siblings", {"positives": "advantage"}),
        "both": Rule("positive iff V > theta and better than its siblings", {"positives": "both"}),
        "weighted": Rule(
            "as published, examples weighed by their advantage", {"weights": "advantage"}
        ),
        "confident": Rule(
            "as published, examples weighed by how sure their label is", {"weights": "confidence"}
        ),
        "odpo": Rule(
            "as published, with a margin as wide as a pair's gap",
            {"margins": "gap"},
            offset=1.0,
        ),
        "kto": Rule("as published, with KTO on unpaired nodes in place of DPO", {}, "sft+kto"),
        "kto-both": Rule(
            "as both, with KTO on unpaired nodes in place of DPO", {"positives": "both"}, "sft+kto"
        ),
        "pg": Rule(
            "clipped policy gradient on sibling advantages in place of SFT and DPO", {}, "pg"
        ),
        "pg-normalised": Rule("as pg, on normalised advantages", {"advantage": "normalised"}, "pg"),
    }
)
"""What `malt.label(forest, rule=NAME)`, `malt label --preview` and ablations know by name."""


def get_rule(name: str) -> Rule:
    """The rule of this name; raises UserError for an unknown one."""
    if name not in RULES:
        raise UserError(
            f"rule: found {name!r}, allowed: {', '.join(RULES)}.{nearest(name, list(RULES))}"
        )
    return RULES[name]
