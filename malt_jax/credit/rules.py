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
        """The config fields that make this rule a run's, by their dotted names.

        A role's own fields of a phase that the rule leaves out stay, and a config with them is
        refused; an ablation drops them (`stages.variants`).
        """
        chosen = self.selection()
        fields: dict[str, Any] = {f"data.{name}": getattr(chosen, name) for name in CREDIT}
        fields["train.dpo.offset"] = self.offset
        for index, role in enumerate(pipeline.roles):
            fields[f"pipeline.roles.{index}.train"] = self.phases_of(role)
            if "offset" in role.training.get("dpo", {}):
                fields[f"pipeline.roles.{index}.training.dpo.offset"] = self.offset
        return fields

    def phases_of(self, role: RoleConfig) -> str:
        """What a role learns by under this rule."""
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
        "advantage-pg": Rule(
            "as advantage, with the policy gradient in place of DPO",
            {"positives": "advantage"},
            "sft+pg",
        ),
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


def in_training(
    asked: str | None,
    selected: Mapping[str, str | None],
    pipeline: PipelineConfig,
    train: TrainConfig,
) -> tuple[dict[str, str], PipelineConfig, TrainConfig]:
    """Each role's phases, and the fields of roles and losses, by the rule that training follows.

    `selected`: by role, the name of the rule that its examples were selected by, or None. `asked`:
    the name that training was given; without it the rule is that of the examples. Without either,
    phases and fields are those of `pipeline` and `train`. A role that the pipeline does not name
    learns like one that does more than SFT. Raises ValueError where names differ, and for a loss
    that the rule's offset does not fit.
    """
    rule = _agreed(asked, selected)
    phases = dict.fromkeys(selected, (rule or RULES["published"]).train)
    for role in pipeline.roles:
        phases[role.name] = rule.phases_of(role) if rule else role.train
    if rule:
        try:
            train = replace(train, dpo=replace(train.dpo, offset=rule.offset))
        except UserError as error:
            raise ValueError(f"rule: the fields of dpo do not fit it: {error}") from None
        roles = tuple(_with_offset(role, rule.offset) for role in pipeline.roles)
        pipeline = replace(pipeline, roles=roles)
    return phases, pipeline, train


def _with_offset(role: RoleConfig, offset: float) -> RoleConfig:
    """The role with this offset in place of one of its own."""
    own = role.training.get("dpo", {})
    if "offset" not in own:
        return role
    return replace(role, training={**role.training, "dpo": {**own, "offset": offset}})


def _agreed(asked: str | None, selected: Mapping[str, str | None]) -> Rule | None:
    names = sorted({name for name in selected.values() if name})
    if len(names) > 1:
        raise ValueError(
            f"rule: the examples were selected by {' and '.join(names)}, but one rule trains all "
            "roles; label the forest by one of them, or train each role by itself"
        )
    without = [role for role, name in selected.items() if name is None]
    if names and without:
        raise ValueError(
            f"rule: the examples of {', '.join(without)} were selected without a rule, those of "
            f"the other roles by {names[0]}; label the forest by it"
        )
    if asked is None:
        return get_rule(names[0]) if names else None
    rule = get_rule(asked)
    if names and names != [asked]:
        raise ValueError(
            f"rule: found {asked!r}, but the examples were selected by {names[0]!r}; leave the "
            f"rule out, or label the forest with rule={asked!r}"
        )
    if rule.data and not names:
        # Trained on other examples it would do something else than its name says.
        raise ValueError(
            f"rule: found {asked!r}, which sets {', '.join(rule.data)} of the selection, but the "
            f"examples were selected without a rule; label the forest with rule={asked!r}"
        )
    return rule
