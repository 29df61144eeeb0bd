"""Systems to compare: chains of (role, policy) turns, all written in one small language.

`generator:base verifier:malt refiner:malt` is a chain; every baseline of the publication and every
role removal is one, so a comparison is a line of config. Policies: `base` (untrained), `sft` (after
SFT only: the STaR pipeline), `malt` (after all configured training), `star` (SFT on drafts that are
right themselves: the STaR single agent). Turns may also name the task's own further templates:
`retry` and `debate`, said by the first role, and `judge`, said by the first role that does not
answer: its critique with a final answer, for a chain that ends there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from malt_jax.checks import check_unique, whole_number
from malt_jax.config.evaluation import MAX_SYSTEM_NAME, EvalConfig, SystemConfig
from malt_jax.data.role_data import STAR
from malt_jax.errors import UserError
from malt_jax.evaluation.results import single_agent_draws
from malt_jax.tree.roles import Pipeline, Role

POLICIES = ("base", "sft", "malt", STAR)
FURTHER_TURNS = ("retry", "debate", "judge")
DEBATERS = 3
SINGLE_AGENT = "sa"


@dataclass(frozen=True)
class Turn:
    role: Role
    policy: str


@dataclass(frozen=True)
class System:
    """A chain of turns; with `agents` > 1 each turn is a round in which all agents speak."""

    name: str
    label: str
    turns: tuple[Turn, ...]
    votes: tuple[int, ...]
    draws: int
    agents: int = 1

    @property
    def calls(self) -> int:
        return len(self.turns) * self.agents


def make_systems(
    config: EvalConfig,
    pipeline: Pipeline,
    templates: Mapping[str, str],
    beside: Sequence[System] = (),
) -> list[System]:
    """The systems a config asks for, the single agent with draws for every equal-call row.

    `beside`: systems measured elsewhere that stand in the same table.
    """
    wanted = standard_systems(pipeline, templates)
    if config.systems:
        known = {system.name: system for system in wanted}
        for index, name in enumerate(config.systems):
            if name not in known:
                raise UserError(
                    f"eval.systems.{index}: {name!r} is not a system here; "
                    f"allowed: {', '.join(known)}."
                )
        # Every row is set beside the single agent at its number of calls, so it is always there.
        names = dict.fromkeys([SINGLE_AGENT, *config.systems])
        wanted = [known[name] for name in names]
    systems = [
        _system(entry, pipeline, templates, f"eval.extra.{entry.name}") for entry in config.extra
    ]
    systems = [_system(entry, pipeline, templates, "eval") for entry in wanted] + systems
    names = [system.name for system in systems]
    names += [system.name for system in beside]
    check_unique("eval.extra, ablations", names)
    calls = {system.name: system.calls for system in (*systems, *beside)}
    votes = {system.name: system.votes for system in (*systems, *beside)}
    draws = single_agent_draws(calls, votes)
    baseline, _, count = config.baseline.partition("@")
    if baseline == SINGLE_AGENT:
        draws = max(draws, whole_number(count) or 1)
    return [
        replace(system, draws=max(draws, system.draws)) if system.name == SINGLE_AGENT else system
        for system in systems
    ]


def standard_systems(pipeline: Pipeline, templates: Mapping[str, str]) -> list[SystemConfig]:
    """Every system of the publication that this pipeline and task have the roles for."""
    names = [role.name for role in pipeline.roles]
    first = names[0]
    further = {turn for turn in FURTHER_TURNS if turn in templates and turn not in names}

    def chain(policy: str, roles: Sequence[str] = names, **other: str) -> tuple[str, ...]:
        return tuple(f"{name}:{other.get(name, policy)}" for name in roles)

    systems = [SystemConfig(SINGLE_AGENT, (f"{first}:base",), "single agent", (1, 3, 9))]
    if "retry" in further:
        turns = (f"{first}:base", "retry:base", "retry:base")
        systems.append(SystemConfig("self-correction", turns, "self-correction, 3 turns"))
    if "debate" in further:
        systems.append(
            SystemConfig("debate", ("debate:base",), "debate, 3 agents x 3 rounds", (1,))
        )
    systems += [
        SystemConfig("ma", chain("base"), "pipeline, untrained"),
        SystemConfig("star-sa", (f"{first}:star",), "STaR single agent", (1, 3, 9)),
        SystemConfig("star-ma", chain("sft"), "STaR pipeline (SFT only)"),
        SystemConfig("malt", chain("malt"), "MALT"),
    ]
    if len(names) > 1:
        systems += [
            SystemConfig(
                f"malt-untrained-{name}", chain("malt", **{name: "base"}), f"MALT, {name} untrained"
            )
            for name in names
        ]
        answering = [role.name for role in pipeline.roles if role.config.answers]
        kept = {first: (first,)}
        if len(names) > 2:
            for dropped in names[1:]:
                roles = tuple(name for name in names if name != dropped)
                joined = "-".join(roles)
                fits = len(f"malt-{joined}") <= MAX_SYSTEM_NAME
                kept[joined if fits else f"without-{dropped}"] = roles
        for said_by, roles in kept.items():
            if any(name in answering for name in roles):
                label = "MALT, " + " + ".join(roles) + " only"
                said = roles
                if roles[-1] not in answering and "judge" in further:
                    said = (*roles[:-1], "judge")
                elif roles[-1] not in answering:
                    label += ", the draft answers"
                systems.append(SystemConfig(f"malt-{said_by}", chain("malt", said), label))
    return systems


def speaker(name: str, pipeline: Pipeline) -> Role:
    """The role whose weights and settings a turn is said with: its own, or a further turn's."""
    silent = [role for role in pipeline.roles if name == "judge" and not role.config.answers]
    named = [role for role in pipeline.roles if role.name == name]
    return (*named, *silent, pipeline.roles[0])[0]


def _system(
    entry: SystemConfig, pipeline: Pipeline, templates: Mapping[str, str], where: str
) -> System:
    chain, agents = entry.chain, 1
    if len(chain) == 1 and chain[0].startswith("debate:"):
        policy = chain[0].partition(":")[2]
        chain = (f"{pipeline.roles[0].name}:{policy}", f"debate:{policy}", f"debate:{policy}")
        agents = DEBATERS
    turns = tuple(_turn(text, pipeline, templates, where) for text in chain)
    if not any(turn.role.config.answers for turn in turns):
        raise UserError(f"{where}: no turn of {entry.name!r} answers (see pipeline.roles.answers).")
    return System(
        entry.name, entry.label or entry.name, turns, entry.votes, max(entry.votes), agents
    )


def _turn(text: str, pipeline: Pipeline, templates: Mapping[str, str], where: str) -> Turn:
    name, _, policy = text.partition(":")
    if policy not in POLICIES:
        raise UserError(
            f"{where}: found {text!r}, allowed: role:policy with {', '.join(POLICIES)}."
        )
    for role in pipeline.roles:
        if role.name == name:
            return Turn(role, policy)
    if name in FURTHER_TURNS and name in templates:
        config = replace(speaker(name, pipeline).config, name=name, answers=True)
        return Turn(Role(config, templates[name]), policy)
    names = ", ".join(role.name for role in pipeline.roles)
    raise UserError(f"{where}: {name!r} in {text!r} is not a role here; allowed: {names}.")
