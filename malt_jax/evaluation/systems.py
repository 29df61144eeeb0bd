"""The systems that an evaluation compares: chains of (role, policy) turns.

A chain is written as `role:policy` words; all baselines and role removals are such chains, so a
comparison is one line of config. `malt_jax.tree.policies` lists the policies. Besides the roles of
the pipeline, a turn may name one of the task's further templates: `retry` and `debate`, spoken by
the single agent, which is the first role that answers, and `judge`, spoken by the last role that
does not, so that its critique ends with a final answer in a chain that ends there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from malt_jax.checks import check_unique, whole_number
from malt_jax.config.evaluation import MAX_SYSTEM_NAME, EvalConfig, SystemConfig
from malt_jax.errors import UserError
from malt_jax.evaluation.results import single_agent_draws
from malt_jax.evaluation.schema import VotedRow
from malt_jax.tree.policies import BASE, POLICIES, SFT, STAR, TRAINED
from malt_jax.tree.prompts import fill
from malt_jax.tree.roles import Chain, Role

FURTHER_TURNS = ("retry", "debate", "judge")
DEBATERS = 3
SINGLE_AGENT = "sa"


@dataclass(frozen=True)
class ChainTurn:
    """One turn of a chain: the role that answers, and the policy it answers with."""

    role: Role
    policy: str


@dataclass(frozen=True)
class System:
    """A chain of turns; with several agents every turn is a round in which all of them answer."""

    name: str
    label: str
    turns: tuple[ChainTurn, ...]
    votes: tuple[int, ...]
    """Majority votes to report, each over the first k draws."""
    draws: int
    """Independent draws per question, at least the largest vote."""
    agents: int = 1
    model: str | None = None
    """Folder of the model or adapter that answers in place of the run's; None: the run's."""
    temperature: float | None = None
    """The temperature of all its turns; None: each role's own."""

    @property
    def single_agent(self) -> str:
        """The single agent that it is compared with: the one at its temperature."""
        return at_temperature(SINGLE_AGENT, self.temperature)

    @property
    def calls(self) -> int:
        """Model calls of one draw."""
        return len(self.turns) * self.agents


def make_systems(
    config: EvalConfig,
    pipeline: Chain,
    templates: Mapping[str, str],
    variants: Sequence[System] = (),
) -> list[System]:
    """The systems that a config asks for, the single agent with draws for every equal-call row.

    `variants`: systems measured elsewhere (ablations) that appear in the same table. Raises
    `UserError` for a system, role or policy that does not exist, naming those that do.
    """
    standard = {entry.name: entry for entry in standard_systems(pipeline, templates)}
    for index, name in enumerate(config.systems):
        if name not in standard:
            raise UserError(
                f"eval.systems.{index}: {name!r} is not a system here; "
                f"allowed: {', '.join(standard)}."
            )
    # Every row is compared with the single agent at its number of calls, so it is always there.
    wanted = dict.fromkeys([SINGLE_AGENT, *config.systems]) if config.systems else standard
    systems = [_system(standard[name], pipeline, templates, "eval") for name in wanted]
    systems += [
        _system(entry, pipeline, templates, f"eval.extra.{entry.name}") for entry in config.extra
    ]
    systems += _model_systems(config.models, pipeline)
    every = [*systems, *variants]
    check_unique("eval.extra, eval.models, ablations", [system.name for system in every])
    # Only the single agent draws more than it asks for: its votes are the equal-call baselines, and
    # the named baseline `sa@k` may want more than any row needs.
    draws = single_agent_draws(
        {system.name: system.calls for system in every},
        {system.name: system.votes for system in every},
    )
    baseline, _, count = config.baseline.partition("@")
    if baseline == SINGLE_AGENT:
        draws = max(draws, whole_number(count) or 1)
    systems = [
        replace(system, draws=max(draws, system.draws)) if system.name == SINGLE_AGENT else system
        for system in systems
    ]
    swept = [_cooled(system, t) for t in config.temperatures for system in systems]
    return swept or systems


def at_temperature(row: str, temperature: float | None) -> str:
    """The name of a system or row in a sweep: `malt@3` at 0.7 is `malt-t0.7@3`."""
    name, separator, votes = row.partition("@")
    return row if temperature is None else f"{name}-t{temperature:g}{separator}{votes}"


def system_without_temperature(row: VotedRow) -> str:
    """The name that a row's system has outside of a sweep: `malt` for `malt-t0.7`."""
    t = row.get("temperature")
    return row["system"] if t is None else row["system"].removesuffix(f"-t{t:g}")


def _cooled(system: System, temperature: float) -> System:
    """The same system with every turn at one temperature."""
    turns = tuple(
        ChainTurn(
            Role(replace(turn.role.config, temperature=temperature), turn.role.template),
            turn.policy,
        )
        for turn in system.turns
    )
    return replace(
        system,
        name=at_temperature(system.name, temperature),
        label=f"{system.label}, T={temperature:g}",
        turns=turns,
        temperature=temperature,
    )


def _model_systems(paths: Sequence[str], pipeline: Chain) -> list[System]:
    """Other models, or adapters, that answer with the single agent's prompt."""
    # Of each path the last parts, at least two and as many as tell all paths apart.
    parts = [[part for part in re.split(r"[/\\]", path) if part.strip(".")] for path in paths]
    names: list[str] = []
    for count in range(2, max([2, *map(len, parts)]) + 1):
        names = [_file_name("-".join(own[-count:])) for own in parts]
        if len({name.casefold() for name in names}) == len(names):
            break
    turns, votes = (ChainTurn(single_agent_role(pipeline), BASE),), (1, 3, 9)
    return [
        System(name, name, turns, votes, max(votes), model=path)
        for name, path in zip(names, paths, strict=True)
    ]


def _file_name(text: str) -> str:
    """Text as the name of a file."""
    safe = re.sub("[^A-Za-z0-9.+_-]", "-", text).strip("-._+") or "model"
    return safe[:MAX_SYSTEM_NAME]


def single_agent_role(pipeline: Chain) -> Role:
    """The role as which the single agent answers: the first one that answers."""
    return next(role for role in pipeline.roles if role.config.answers)


def standard_systems(pipeline: Chain, templates: Mapping[str, str]) -> list[SystemConfig]:
    """Every system of the publication that this pipeline and the task's templates allow."""
    names = [role.name for role in pipeline.roles]
    first = single_agent_role(pipeline).name
    # A name that the pipeline has means its role, never the task's further turn.
    further = {turn for turn in FURTHER_TURNS if turn in templates and turn not in names}
    systems = [SystemConfig(SINGLE_AGENT, (f"{first}:{BASE}",), "single agent", (1, 3, 9))]
    if "retry" in further:
        retries = (f"{first}:{BASE}", f"retry:{BASE}", f"retry:{BASE}")
        systems.append(SystemConfig("self-correction", retries, "self-correction, 3 turns"))
    if "debate" in further:
        label = f"debate, {DEBATERS} agents x 3 rounds"
        systems.append(SystemConfig("debate", (f"debate:{BASE}",), label, (1,)))
    systems.append(SystemConfig("ma", _chain(names, BASE), "pipeline, untrained"))
    if first == names[0]:  # its training reads the first turns of the search
        label = "STaR single agent"
        systems.append(SystemConfig("star-sa", (f"{first}:{STAR}",), label, (1, 3, 9)))
    systems += [
        SystemConfig("star-ma", _chain(names, SFT), "STaR pipeline (SFT only)"),
        SystemConfig("malt", _chain(names, TRAINED), "MALT"),
    ]
    if len(names) > 1:
        for name in names:
            chain = tuple(f"{role}:{BASE if role == name else TRAINED}" for role in names)
            systems.append(SystemConfig(f"malt-untrained-{name}", chain, f"MALT, {name} untrained"))
        systems += _role_removals(pipeline, "judge" in further)
    return systems


def _chain(roles: Sequence[str], policy: str) -> tuple[str, ...]:
    return tuple(f"{role}:{policy}" for role in roles)


def _role_removals(pipeline: Chain, judge: bool) -> Iterator[SystemConfig]:
    """The trained first role alone, and the chain with each later role removed in turn.

    A chain that ends with a role that does not answer ends with the judge's turn instead where the
    task has one (`judge`); otherwise the draft is its answer.
    """
    names = [role.name for role in pipeline.roles]
    answering = {role.name for role in pipeline.roles if role.config.answers}
    kept: dict[str, tuple[str, ...]] = {names[0]: (names[0],)}
    # Of two roles, removing the later one leaves the first alone, which is there already.
    for removed in names[1:] if len(names) > 2 else ():
        roles = tuple(name for name in names if name != removed)
        joined = "-".join(roles)
        short = len(f"malt-{joined}") <= MAX_SYSTEM_NAME
        kept[joined if short else f"without-{removed}"] = roles
    for name, roles in kept.items():
        if not answering.intersection(roles):
            continue
        label = "MALT, " + " + ".join(roles) + " only"
        if roles[-1] not in answering and judge:
            roles = (*roles[:-1], "judge")
        elif roles[-1] not in answering:
            label += ", the draft answers"
        yield SystemConfig(f"malt-{name}", _chain(roles, TRAINED), label)


def speaker(name: str, pipeline: Chain) -> Role:
    """The role whose weights and settings a turn uses: its own, or that of a further turn."""
    for role in pipeline.roles:
        if role.name == name:
            return role
    silent = [role for role in pipeline.roles if name == "judge" and not role.config.answers]
    return silent[-1] if silent else single_agent_role(pipeline)


def _system(
    entry: SystemConfig, pipeline: Chain, templates: Mapping[str, str], where: str
) -> System:
    chain, agents = entry.chain, 1
    if len(chain) == 1 and chain[0].startswith("debate:"):
        # In the first round each agent answers alone; in the two after it they read each other.
        policy = chain[0].partition(":")[2]
        chain = (
            f"{single_agent_role(pipeline).name}:{policy}",
            f"debate:{policy}",
            f"debate:{policy}",
        )
        agents = DEBATERS
    turns = tuple(_turn(text, pipeline, templates, where) for text in chain)
    if not any(turn.role.config.answers for turn in turns):
        raise UserError(f"{where}: no turn of {entry.name!r} answers (see pipeline.roles.answers).")
    label = entry.label or entry.name
    return System(entry.name, label, turns, entry.votes, max(entry.votes), agents)


def _turn(text: str, pipeline: Chain, templates: Mapping[str, str], where: str) -> ChainTurn:
    name, _, policy = text.partition(":")
    if policy not in POLICIES:
        raise UserError(
            f"{where}: found {text!r}, allowed: role:policy with {', '.join(POLICIES)}."
        )
    if policy == STAR and speaker(name, pipeline).config.model:
        raise UserError(
            f"{where}: {text!r} asks for the STaR single agent, which is trained over the run's "
            "model, of a role that answers with a model of its own; choose another policy."
        )
    if policy == STAR and not pipeline.roles[0].config.answers:
        raise UserError(
            f"{where}: {text!r} asks for the STaR single agent, which learns from the answers of "
            "the first role, and here that one does not answer; choose another policy."
        )
    for role in pipeline.roles:
        if role.name == name:
            return ChainTurn(role, policy)
    if name in FURTHER_TURNS and name in templates:
        # The speaker's settings under the turn's own name. Such a turn is always graded, even where
        # the speaker itself does not answer.
        config = replace(speaker(name, pipeline).config, name=name, answers=True)
        # The task's templates call the first solution `generator`, whatever role writes it.
        template = templates[name]
        if all(role.name != "generator" for role in pipeline.roles):
            template = fill(template, {"generator": f"{{{single_agent_role(pipeline).name}}}"})
        return ChainTurn(Role(config, template), policy)
    names = ", ".join(role.name for role in pipeline.roles)
    raise UserError(f"{where}: {name!r} in {text!r} is not a role here; allowed: {names}.")
