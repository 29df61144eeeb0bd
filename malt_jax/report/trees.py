"""Search trees as the explorer reads them, and what all trees of a group show together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from malt_jax.credit.contrast import Contrast
from malt_jax.credit.repeats import pool_repeats
from malt_jax.report.embed import Pages
from malt_jax.report.figures import DepthValues
from malt_jax.report.prompts import Templates
from malt_jax.storage.jsonl import read_lines, read_records
from malt_jax.tree.node import Node, Tree

EMBEDDED = ("confidence", "verdict", "influence", "divergence")
"""Signals that are embedded in the page, which computes advantages from the values itself."""
SHORT = 300
"""Characters of a question that the list shows and the search looks through."""


@dataclass
class Uses:
    """Which nodes became training examples."""

    phases: set[str] = field(default_factory=set)
    """Roles and phases with data, for example `verifier/dpo`."""
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Node id -> whose SFT example it is: its role's, or `star` for the STaR baseline's."""
    pairs: dict[str, list[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(list))
    """Question id -> (chosen node id, rejected node id, role)."""
    signals: dict[str, dict[str, float]] = field(default_factory=dict)
    """Node id -> the signals that cannot be told from the values of its tree alone."""

    @property
    def by_role(self) -> dict[str, int]:
        """Pairs by role."""
        return dict(Counter(role for pairs in self.pairs.values() for *_, role in pairs))


@dataclass
class Totals:
    """What all trees of a group show together, collected tree by tree."""

    roles: tuple[str, ...] = ()
    values: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    """Role -> value -> number of nodes."""
    spans: dict[int, list[tuple[float, float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Depth (0 is the root) -> the worst, mean and best value of each tree."""
    correct: dict[str, list[tuple[bool, float]]] = field(default_factory=lambda: defaultdict(list))
    """Role -> whether the answer that each turn itself states is right, if it states one, and how
    much it counts."""
    contrast: Contrast = field(default_factory=Contrast)
    """What the trees can teach each role."""

    def add(self, tree: Tree) -> None:
        """Counts one tree."""
        self.roles = self.roles or tree.roles
        # The root has one value, the mean reward of all leaves: worst, mean and best are the same.
        mean_reward = tree.mean_reward
        self.spans[0].append((mean_reward, mean_reward, mean_reward))
        for depth, role in enumerate(tree.roles, start=1):
            nodes = [node for node in tree.nodes if node.role == role]
            values = [node.value for node in nodes]
            self.values[role].update(values)
            self.spans[depth].append((min(values), tree.mean(nodes, values), max(values)))
            for node in nodes:
                if node.correct is not None:
                    self.correct[role].append((node.correct, tree.weights[node.id]))

    def by_depth(self) -> list[DepthValues]:
        """Averages over the trees at each depth, the root first."""
        averages = [np.mean(spans, axis=0).tolist() for _, spans in sorted(self.spans.items())]
        counted = [self.correct[role] for role in self.roles]
        found = [None, *(_weighted(own) if own else None for own in counted)]
        # From one triple per depth to one series each of worst, mean and best.
        return list(
            map(DepthValues, ("question", *self.roles), *zip(*averages, strict=True), found)
        )


@dataclass
class Group:
    """A set of trees: a round of the search, or the trees of held-out questions."""

    key: str
    name: str
    trained: list[str] | None
    """Roles and phases that learn from these trees; None if nothing may."""
    questions: list[dict[str, Any]]
    """One entry of the explorer's list per tree."""
    totals: Totals
    pairs: dict[str, int] | None = None
    """Preference pairs by role; None if nothing may learn from these trees."""


def read_uses(folder: Path) -> Uses:
    """What a round's data say of its nodes: `ROLE/sft.jsonl`, `ROLE/dpo.jsonl`, ..."""
    uses = Uses()
    for path in sorted(folder.glob("*/sft.jsonl")):
        for row in read_lines(path):
            uses.examples[row["node_id"]].append(row["role"])
            uses.phases.add(f"{row['role']}/sft")
    for path in sorted(folder.glob("*/dpo.jsonl")):
        for row in read_lines(path):
            pair = (row["chosen_node_id"], row["rejected_node_id"], row["role"])
            uses.pairs[row["question_id"]].append(pair)
            uses.phases.add(f"{row['role']}/dpo")
    for phase, file in (("kto", "kto.jsonl"), ("pg", "policy.jsonl")):
        for path in sorted(folder.glob(f"*/{file}")):
            uses.phases.update(f"{row['role']}/{phase}" for row in read_lines(path))
    return uses


def read_signals(path: Path) -> dict[str, dict[str, float]]:
    """The signals that the page shows, by node id; none if the trees have not been labelled."""
    rows = read_lines(path) if path.exists() else ()
    found = ((row["node_id"], {n: row[n] for n in EMBEDDED if n in row}) for row in rows)
    return {node_id: shown for node_id, shown in found if shown}


def add_trees(
    key: str,
    name: str,
    files: Iterable[Path],
    data: Path | None,
    signals: Path,
    pages: Pages,
    templates: Templates,
    threshold: float,
) -> Group:
    """Reads the trees in `files`, adds each of them to the page's data, and sums them up.

    `data` is the folder of the role data made from the trees, None for held-out trees; `signals` is
    the file of what its nodes are credited with.
    """
    uses = read_uses(data) if data else Uses()
    uses.signals = read_signals(signals)
    group = Group(key, name, sorted(uses.phases) if data else None, [], Totals())
    group.totals.contrast.threshold = threshold
    for file in files:
        for tree in read_records(file, Tree.from_record):
            page, place = pages.add(key, compact(tree, uses, templates))
            group.questions.append(entry(tree) | {"page": page, "at": place})
            group.totals.add(tree)
            group.totals.contrast.add(tree, uses.signals)
    group.pairs = uses.by_role if data else None
    return group


def compact(tree: Tree, uses: Uses, templates: Templates) -> dict[str, Any]:
    """One tree for the page: texts, sums in place of token lists, and parents by index."""
    index = {node.id: i for i, node in enumerate(tree.nodes)}
    paths = _paths(tree)
    # Rules compare siblings by the values that equal texts have together.
    pooled = {node.id: node.value for node in pool_repeats(tree).nodes}
    pairs = [
        (index[chosen], index[rejected])
        for chosen, rejected, _ in uses.pairs.get(tree.question_id, ())
        if chosen in index and rejected in index
    ]
    nodes = []
    for node in tree.nodes:
        earlier = [turn.completion for turn in paths[node.id][:-1]]
        nodes.append(
            {
                "id": node.id,
                "depth": tree.roles.index(node.role),
                "parent": -1 if node.parent is None else index[node.parent],
                "text": node.completion,
                "prompt": templates.number(node.prompt, tree.question, earlier),
                "value": node.value,
                "label": node.label,
                "correct": node.correct,
                "parsed": node.parsed,
                "leaf": node.reward is not None,
                # Rounded, because further digits only make the page larger.
                # None for a tree that was sampled elsewhere and came without them.
                "logprob": round(sum(node.logprobs), 3) if node.logprobs else None,
                "tokens": len(node.token_ids),
                "finish": node.finish,
                "sft": uses.examples.get(node.id, []),
                **({} if node.thought is None else {"thought": node.thought}),
                **({"pooled": pooled[node.id]} if pooled[node.id] != node.value else {}),
                **({"credit": found} if (found := uses.signals.get(node.id)) else {}),
            }
        )
    return {
        "id": tree.question_id,
        "question": tree.question,
        "answer": tree.answer,
        "roles": tree.roles,
        "pairs": pairs,
        "nodes": nodes,
    }


def entry(tree: Tree) -> dict[str, Any]:
    """One line of the list of questions: the leaves as text of 0 and 1, and what to filter by.

    A leaf is saved if the first answer on its path was wrong and the leaf's is right, and broken if
    it is the other way round. A question flips if any of its leaves did either.
    """
    paths = _paths(tree)
    outcomes = [(bool(leaf.correct), _draft(paths[leaf.id])) for leaf in tree.leaves]
    return {
        "id": tree.question_id,
        "text": tree.question[:SHORT],
        "answer": tree.answer[:SHORT],
        "leaves": "".join("1" if right else "0" for right, _ in outcomes),
        "saved": sum(right and draft is False for right, draft in outcomes),
        "broke": sum(not right and draft is True for right, draft in outcomes),
    }


def _draft(path: Sequence[Node]) -> bool | None:
    """Whether the first turn of a path that answers is right; None if that is the last one."""
    return next((node.correct for node in path[:-1] if node.correct is not None), None)


def _paths(tree: Tree) -> dict[str, tuple[Node, ...]]:
    """The nodes from the draft down to each node; parents come before their children."""
    paths: dict[str, tuple[Node, ...]] = {}
    for node in tree.nodes:
        earlier = () if node.parent is None else paths[node.parent]
        paths[node.id] = (*earlier, node)
    return paths


def _weighted(counted: Sequence[tuple[bool, float]]) -> float:
    return sum(right * weight for right, weight in counted) / sum(weight for _, weight in counted)
