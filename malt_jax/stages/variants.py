"""What a run measures: its systems, and for each ablation a config and a system."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from malt_jax.config import reading
from malt_jax.config.evaluation import Ablation
from malt_jax.config.pipeline import PHASES, PipelineConfig, split_phases
from malt_jax.config.run import Config
from malt_jax.credit.rules import get_rule
from malt_jax.data.role_data import policy_name
from malt_jax.errors import UserError
from malt_jax.evaluation.results import row_name
from malt_jax.evaluation.systems import System, at_temperature, make_systems
from malt_jax.stages.names import label_stage, search_stage, train_stage
from malt_jax.stages.policies import phases_of
from malt_jax.stages.session import Session
from malt_jax.tree.policies import STAR, TRAINED
from malt_jax.tree.roles import make_chain


@dataclass(frozen=True)
class Variant:
    """An ablation as a run of its own: its config and the system that measures it."""

    folder: str
    """Name of its folder below `RUN/ablations`."""
    config: Config
    system: System


def planned(session: Session) -> tuple[list[System], list[Variant]]:
    """The systems of the run and its variants, checked before any work begins."""
    config, templates = session.config, session.task.templates
    variants = [_make(config, ablation, templates) for ablation in config.ablations]
    # Variants share the table, so their names must differ from the systems', and the single agent
    # needs draws for their number of calls.
    beside = [variant.system for variant in variants]
    systems = make_systems(config.eval, session.pipeline, templates, beside)
    if variants and config.eval.temperatures:
        raise UserError(
            "eval.temperatures: found beside ablations, which are measured at the roles' own "
            "temperatures; sweep with `malt eval --run DIR --name NAME` once the run is finished."
        )
    _check_baseline(config.eval.baseline, [*systems, *beside])
    return systems, variants


def _check_baseline(baseline: str, systems: Sequence[System]) -> None:
    """Refuses a baseline that is not measured, before hours of evaluation."""
    rows = rows_of(systems)
    if not is_row(baseline, systems):
        raise UserError(
            f"eval.baseline: {baseline!r} is not a row of the table; name another one with "
            f"--eval.baseline, allowed: {', '.join(rows)}."
        )


def is_row(baseline: str, systems: Sequence[System]) -> bool:
    """Whether the table has this row, in a sweep at every temperature."""
    wanted = {at_temperature(baseline, system.temperature) for system in systems}
    return wanted <= set(rows_of(systems))


def rows_of(systems: Sequence[System]) -> list[str]:
    """The rows that may be a baseline: every vote, and of the single agent any number of draws."""
    rows = [row_name(s.name, k) for s in systems for k in s.votes]
    for single in (s for s in systems if s.name == s.single_agent):
        rows += [row_name(single.name, k) for k in range(1, single.draws + 1)]
    return list(dict.fromkeys(rows))


def varied(config: Config, ablation: Ablation) -> Config:
    """The config of an ablation's run: the fields of its rule, and its own over them."""
    rule = get_rule(ablation.rule).settings(config.pipeline) if ablation.rule else {}
    made = _with_changes(config, ablation.changes, rule)
    mirror = config.mirror and f"{config.mirror}/ablations/{ablation.name}"
    return replace(made, mirror=mirror)


def _with_changes(
    config: Config, changes: Mapping[str, Any], rule: Mapping[str, Any] = MappingProxyType({})
) -> Config:
    """The config of a variant with these changes; without any, the run as a variant of itself.

    `rule`: fields that are set before them.
    """
    data = reading.to_dict(replace(config, ablations=()))
    for fields in (rule, changes):
        for field, value in fields.items():
            data = reading.assign(data, field, value, Config)
    if rule:
        _drop_idle(data["pipeline"]["roles"], config.pipeline, changes)
    # A variant is one row of the run's table, whose baselines are not measured again.
    data["eval"] |= {"systems": [TRAINED], "extra": [], "trees": 0, "models": []}
    data["eval"]["temperatures"] = []
    # Influence is a number for the reader, the same for every rule, and costs a scoring pass.
    data["data"]["influence"] = changes.get("data.influence", False)
    return reading.build(Config, data)


def _drop_idle(
    roles: list[dict[str, Any]], before: PipelineConfig, changes: Mapping[str, Any]
) -> None:
    """Drops the run's fields of roles for phases that a rule has taken from them.

    Those of the ablation itself stay, and are refused where they have no effect.
    """
    for index, (role, own) in enumerate(zip(roles, before.roles, strict=False)):
        # The STaR single agent, which learns by SFT, has the fields of the first role.
        learned = {*split_phases(role.get("train", own.train)), *(["sft"] if index == 0 else [])}
        for phase in set(PHASES) & set(own.training) - learned:
            field = f"pipeline.roles.{index}.training.{phase}."
            if not any(field.startswith(f"{name}.") or name.startswith(field) for name in changes):
                role["training"].pop(phase, None)


def _make(config: Config, ablation: Ablation, templates: Mapping[str, str]) -> Variant:
    try:
        changes = ", ".join(f"{field}={value}" for field, value in ablation.changes.items())
        other = varied(config, ablation)
        if replace(other, mirror=config.mirror) == _with_changes(config, {}):
            raise UserError(
                "it changes nothing: these are the run's own values. Leave it out, or change one."
            )
        # Comparisons are paired by question, so they need the same questions and grader.
        if _measured_on(other) != _measured_on(config):
            raise UserError("it would be measured on other questions; leave those of eval alone.")
        pipeline = make_chain(other.pipeline, templates)
        systems = make_systems(other.eval, pipeline, templates)
    except UserError as error:
        raise UserError(f"ablations.{ablation.name}: {error}") from None
    trained = next(system for system in systems if system.name == TRAINED)
    rule = f"rule {ablation.rule}" if ablation.rule else ""
    label = f"{trained.label}, {ablation.label or ', '.join(filter(None, [rule, changes]))}"
    system = replace(trained, name=f"{TRAINED}-{ablation.name}", label=label)
    return Variant(ablation.name, other, system)


def _measured_on(config: Config) -> tuple[Any, ...]:
    task = config.task
    measured = (task.eval_path, task.num_eval, task.num_validation, config.eval.split)
    return task.name, task.grader, *measured


def shared_stages(one: Config, other: Config) -> Iterator[str]:
    """The stages that two configs have in common, in order, up to the first that differs."""
    kinds: tuple[tuple[Callable[[Config], list[Any]], Callable[[int], Iterable[str]]], ...] = (
        (_search_fields, lambda round: [search_stage(round)]),
        (_label_fields, lambda round: [label_stage(round)]),
        *((partial(_phase_fields, p), partial(_phase_stages, one, p)) for p in PHASES),
    )
    # In the order of the run: what comes after the first difference was made from it.
    for round in range(min(one.rounds, other.rounds)):
        for fields, stages in kinds:
            # Influence is measured with the labels; nothing is selected by it.
            lacks = fields is _label_fields and other.data.influence and not one.data.influence
            if lacks or fields(one) != fields(other):
                return
            yield from stages(round)


# The fields that each kind of stage depends on. A new field that changes trees, labels or training
# must be added here; otherwise an ablation of it would reuse the run's stage in silence.


def _search_fields(config: Config) -> list[Any]:
    # By which phases a role learns does not change the trees of its round, nor does how it is read.
    roles = [
        replace(role, train="none", verdict="none", training={}) for role in config.pipeline.roles
    ]
    shards = (config.search.block, config.search.shard, config.search.spare)
    overflow = config.pipeline.overflow
    return [config.model, config.task, config.seed, roles, overflow, shards, config.sampler]


def _label_fields(config: Config) -> list[Any]:
    search = config.search
    # KTO and the policy gradient have files of their own, written where a role learns by them.
    files = [set(split_phases(role.train)) & {"kto", "pg"} for role in config.pipeline.roles]
    verdicts = [role.verdict for role in config.pipeline.roles]
    data = replace(config.data, influence=False)
    return [search.backup, search.softness, search.threshold, data, files, verdicts]


def _phase_fields(phase: str, config: Config) -> list[Any]:
    learns = [phase in split_phases(role.train) for role in config.pipeline.roles]
    policies = [config.train, *(config.training_of(role.name) for role in config.pipeline.roles)]
    fields = [(train.full, train.lora, train.phase(phase)) for train in policies]
    return [fields, config.sharing, learns]


def _phase_stages(config: Config, phase: str, round: int) -> list[str]:
    names = dict.fromkeys(policy_name(r.name, config.sharing) for r in config.pipeline.roles)
    trained = [name for name in names if phase in phases_of(config, name)]
    return [train_stage(round, name, phase) for name in [*trained, *[STAR] * (phase == "sft")]]
