"""Roles, and the chain in which they answer."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.errors import UserError
from malt_jax.tree.prompts import miswritten, placeholders, unknown

T = TypeVar("T")


def of_role(given: T | Mapping[str, T], role: str) -> T:
    """What a role uses, such as its model: its own entry of a mapping, or the one for all."""
    return given[role] if isinstance(given, Mapping) else given


@dataclass(frozen=True)
class Role:
    """One turn of the chain: its prompt template (the role prefix) and how it samples."""

    config: RoleConfig
    template: str

    @property
    def name(self) -> str:
        return self.config.name

    def tokenizer(self, model_tokenizer: Any) -> Any:
        """The model's tokenizer with this role's system message and template arguments."""
        system, arguments = self.config.system, self.config.chat_template_kwargs
        if system is None and not arguments:
            return model_tokenizer
        return model_tokenizer.with_chat(system, arguments)

    def passed_on(self, text: str, thought: str | None) -> str:
        """What later roles read of a turn."""
        return (thought or "") + text if self.config.thinking.pass_on else text


@dataclass(frozen=True)
class Chain:
    """A chain of roles; the published one is generator -> verifier -> refiner."""

    roles: tuple[Role, ...]

    @property
    def branches(self) -> tuple[int, ...]:
        return tuple(role.config.branch for role in self.roles)

    @property
    def calls(self) -> int:
        """Completions per tree: n + n^2 + n^3 for three roles with n branches."""
        return sum(math.prod(self.branches[: d + 1]) for d in range(len(self.branches)))

    def node_id(self, question_id: str, path: Sequence[int]) -> str:
        """The id of a node: its path as text, for example `Q17/g2/v0/r1`."""
        short = abbreviations([role.name for role in self.roles])
        # Not strict, because an inner node's path ends above the last role.
        return "/".join([question_id, *(f"{s}{i}" for s, i in zip(short, path, strict=False))])


def make_chain(config: PipelineConfig | None, templates: Mapping[str, str]) -> Chain:
    """The configured chain, by default the published one.

    A role without a template of its own takes the task's template for its name.
    """
    roles: list[Role] = []
    for index, role in enumerate((config or PipelineConfig()).roles):
        template = role.template or templates.get(role.name)
        if template is None:
            raise UserError(
                f"pipeline.roles.{index}.template: missing; the task has no template for a role "
                f"named {role.name!r} (it has {', '.join(templates)})."
            )
        # `roles` holds the roles made so far: a turn cannot quote what comes after it.
        known = {"question", "previous", *(earlier.name for earlier in roles)}
        for name in unknown(template, known):
            raise UserError(
                f"pipeline.roles.{index}.template: {{{name}}} is not the question or an "
                f"earlier role; allowed: {', '.join('{' + k + '}' for k in sorted(known))}."
            )
        # Only names that would have been replaced; other braces may be meant as they are.
        for name in known.intersection(miswritten(template)):
            raise UserError(
                f"pipeline.roles.{index}.template: {name!r} is in double braces or next to "
                f"blanks; a placeholder is written {{{name}}}."
            )
        if index == 0 and "question" not in placeholders(template):
            raise UserError(
                f"pipeline.roles.{index}.template: lacks {{question}}, so the first role would not "
                "know what is asked; add it."
            )
        roles.append(Role(role, template))
    return Chain(tuple(roles))


def check_loaded(
    config: PipelineConfig, roles: Container[str] | None, weights: Container[str], models: object
) -> None:
    """Refuses an adapter or a base model of some roles that the config names and nobody has loaded.

    A run loads them. `roles`: None for all. `weights`: the roles that were given weights; `models`:
    the model, or each role's by name. Raises ValueError.
    """
    for role in (role for role in config.roles if roles is None or role.name in roles):
        if role.adapter and role.name not in weights:
            raise ValueError(
                f"{role.name}: its adapter {role.adapter!r} would be left out, because only a run "
                "loads it; read it with malt_jax.models.adapters.load_adapter and give it."
            )
        if role.model and not isinstance(models, Mapping):
            raise ValueError(
                f"{role.name}: its model {role.model!r} would be left out, because only a run "
                "loads it; give the models of all roles by name."
            )


def abbreviations(names: Sequence[str]) -> list[str]:
    """Each name's shortest prefix that no other name begins with (`generator` -> `g`)."""
    short = []
    for name in names:
        others = [other for other in names if other != name]
        lengths = (n for n in range(1, len(name) + 1))
        fits = (n for n in lengths if not any(other.startswith(name[:n]) for other in others))
        # A name with which another one begins (`a` beside `ab`) is used in full.
        short.append(name[: next(fits, len(name))])
    return short
