"""Preview: what every credit rule would select from a run's sealed trees; nothing is written."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from statistics import fmean

import malt_jax as malt
from malt_jax.config.data import DataConfig
from malt_jax.config.pipeline import PipelineConfig
from malt_jax.credit.contrast import advice, contrast
from malt_jax.credit.rules import RULES
from malt_jax.credit.selection import Selection
from malt_jax.credit.signals import Signals, node_signals
from malt_jax.credit.verdict import judged_answers, verdict_readers
from malt_jax.data.role_data import RoleData
from malt_jax.evaluation.credit_table import contrast_table
from malt_jax.evaluation.table import Table, numbers, texts
from malt_jax.stages.credit import known_influence
from malt_jax.stages.session import Session
from malt_jax.tree.node import Forest, Node

NOTE = (
    "After right, wrong: positives after a right and after a wrong answer. SFT, pairs, KTO and "
    "PG: examples for fine-tuning, preference pairs with their mean gap in value, desirable and "
    "undesirable unpaired turns, turns with an advantage for the policy gradient. A role takes "
    "those of its phases (`train` of the role). A rule changes the phases of roles that learn by "
    "more than SFT; a role that learns by SFT alone, as the generator does, keeps that."
)


def preview(session: Session, round: int) -> list[str]:
    """The lines to print about a round: what its trees hold, and what each rule makes of them."""
    config, threshold = session.config, session.config.search.threshold
    forest = session.valued(session.forest(round))
    signals = node_signals(
        forest,
        threshold=threshold,
        readers=verdict_readers(config.pipeline.roles),
        measured={"influence": known_influence(session, round)},
    )
    found = contrast(forest.trees, signals, threshold)
    rules = {name: rule.selection(config.data) for name, rule in RULES.items()}
    if config.data not in rules.values():
        rules = {"this config": config.data, **rules}
    return [
        f"Round {round}: {len(forest.trees)} trees. Nothing was written.",
        "",
        *contrast_table(found).plain(),
        "",
        *advice(found),
        "",
        *_rule_table(forest, signals, rules, config.seed, threshold).plain(),
        "",
        NOTE,
        "",
        *_legend(config.pipeline),
    ]


def _rule_table(
    forest: Forest,
    signals: Signals,
    rules: Mapping[str, DataConfig],
    seed: int,
    threshold: float,
) -> Table:
    """One row per rule and role."""
    columns = texts("rule", "role") + numbers(
        "positives", "after right", "after wrong", "SFT", "pairs", "mean gap", "KTO +", "KTO -",
        "PG",
    )  # fmt: skip
    judged: dict[str, Node | None] = {}
    for tree in forest.trees:
        judged |= judged_answers(tree)
    rows = []
    for name, config in rules.items():
        selection = Selection(config, signals, threshold)
        data = malt.label(forest, config, seed=seed, signals=signals, threshold=threshold)
        positives: dict[str, list[bool | None]] = {role: [] for role in forest.roles}
        for tree in forest.trees:
            for node in selection.tree(tree).nodes:
                if selection.sign(node) > 0:
                    before = judged[node.id]
                    positives[node.role].append(before.correct if before else None)
        for role, learned in data.items():
            rows.append([name, role, *_cells(positives[role], learned)])
            name = ""
    return Table(columns, rows)


def _cells(positives: list[bool | None], learned: RoleData) -> list[str]:
    gaps = [pair.chosen_value - pair.rejected_value for pair in learned.dpo]
    preceded = [positives.count(True), positives.count(False)]
    return [
        str(len(positives)),
        *(str(count) if any(preceded) else "" for count in preceded),
        str(len(learned.sft)),
        str(len(learned.dpo)),
        f"{fmean(gaps):.2f}" if gaps else "",
        str(sum(example.label for example in learned.kto)),
        str(sum(not example.label for example in learned.kto)),
        str(len(learned.pg)),
    ]


def _legend(pipeline: PipelineConfig) -> Iterator[str]:
    """What each rule is, and what it changes in the published one's config."""
    published = RULES["published"].settings(pipeline)
    width = max(map(len, RULES))
    for name, rule in RULES.items():
        flags = [
            f"--{field} {shlex.quote(str(value))}"
            for field, value in rule.settings(pipeline).items()
            if value != published.get(field)
        ]
        yield f"{name:{width}}  {rule.summary}" + (f" ({' '.join(flags)})" if flags else "")
