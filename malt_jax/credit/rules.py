"""Credit rules by name: what is selected from a forest, and what it is trained by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from malt_jax.checks import nearest
from malt_jax.config.data import DataConfig
from malt_jax.errors import UserError


@dataclass(frozen=True)
class Rule:
    """How nodes become training examples, and by which phases roles learn from them."""

    summary: str
    data: DataConfig
    train: str | None = None
    """`RoleConfig.train` of every role but the first; None: as the config has it."""

    def settings(self, roles: int) -> Iterator[tuple[str, Any]]:
        """The config fields that this rule sets, for a pipeline of so many roles."""
        default = asdict(DataConfig())
        for name, value in asdict(self.data).items():
            if value != default[name]:
                yield f"data.{name}", value
        # The first role imitates, as published, unless it is the only one.
        for index in range(min(1, roles - 1), roles) if self.train else ():
            yield f"pipeline.roles.{index}.train", self.train


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "published": Rule("MALT as published: positive iff V > theta", DataConfig()),
        "advantage": Rule(
            "positive iff better than its siblings", DataConfig(positives="advantage")
        ),
        "both": Rule(
            "positive iff V > theta and better than its siblings", DataConfig(positives="both")
        ),
        "weighted": Rule(
            "positive iff V > theta, weighed by the advantage", DataConfig(weights="advantage")
        ),
        "confident": Rule(
            "positive iff V > theta, weighed by how sure that is", DataConfig(weights="confidence")
        ),
        "odpo": Rule(
            "published, and DPO asks for a margin as wide as the gap", DataConfig(margins="gap")
        ),
        "kto": Rule(
            "positive iff V > theta; KTO on unpaired nodes in place of DPO",
            DataConfig(),
            "sft+kto",
        ),
        "kto-both": Rule(
            "as `both`; KTO on unpaired nodes in place of DPO",
            DataConfig(positives="both"),
            "sft+kto",
        ),
        "pg": Rule("clipped policy gradient on sibling advantages", DataConfig(), "pg"),
        "pg-normalised": Rule(
            "clipped policy gradient on normalised advantages",
            DataConfig(advantage="normalised"),
            "pg",
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
