"""Search trees as the explorer reads them, and what all trees of a round say together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from malt_jax.report.embed import Pages
from malt_jax.report.prompts import Templates
from malt_jax.storage.jsonl import read_lines

Tree = Mapping[str, Any]
NEEDS = ("question_id", "question", "answer", "nodes")
"""Of a tree, to be shown: one of a search in progress is not sealed yet."""
SHORT = 300
"""Characters of a question that the list shows and the search looks through."""


@dataclass
class Uses:
    """Which nodes were learnt from."""

    phases: set[str] = field(default_factory=set)
    """Roles and phases with data, as `verifier/dpo`."""
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Node id -> whose SFT example it is: its role's, or `star` for the STaR baseline's."""
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    """Question id -> (chosen, rejected) node ids."""


@dataclass
class Totals:
    """Sums over the trees of a round."""

    roles: list[str] = field(default_factory=list)
    values: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    """Role -> value -> nodes."""
    levels: list[list[float]] = field(default_factory=list)
    """Per depth, the root first: sums of the worst, mean and best value; right and graded turns."""
    trees: int = 0


@dataclass
class Group:
    """A set of trees: a round of the search, or the held-out ones."""

    key: str
    name: str
    trained: list[str] | None
    """Roles and phases that learnt from these trees; None where nothing may."""
    questions: list[dict[str, Any]]
    """One entry of the explorer's list a tree."""
    totals: Totals


def read_uses(folder: Path) -> Uses:
    """The node ids named in `ROLE/sft.jsonl` and `ROLE/dpo.jsonl` of a round's data."""
    uses = Uses()
    for path in sorted(folder.glob("*/sft.jsonl")):
        for row in read_lines(path):
            uses.examples[row["node_id"]].append(row["role"])
            uses.phases.add(f"{row['role']}/sft")
    for path in sorted(folder.glob("*/dpo.jsonl")):
        for row in read_lines(path):
            pair = (row["chosen_node_id"], row["rejected_node_id"])
            uses.pairs[row["question_id"]].append(pair)
            uses.phases.add(f"{row['role']}/dpo")
    return uses


def add_trees(
    key: str,
    name: str,
    files: Iterable[Path],
    data: Path | None,
    pages: Pages,
    templates: Templates,
) -> Group:
    """Reads the trees in `files`, pages every one, and sums them up.

    `data` is the folder of the role data made from them, None for held-out trees.
    """
    uses = read_uses(data) if data else Uses()
    group = Group(key, name, sorted(uses.phases) if data else None, [], Totals())
    for file in files:
        for tree in read_lines(file, NEEDS):
            page, place = pages.add(key, compact(tree, uses, templates))
            group.questions.append(entry(tree) | {"page": page, "at": place})
            _count(tree, group.totals)
    return group


def compact(tree: Tree, uses: Uses, templates: Templates) -> dict[str, Any]:
    """One tree for its page: texts, and numbers in place of token lists; parents by index."""
    nodes = tree["nodes"]
    index = {node["id"]: i for i, node in enumerate(nodes)}
    by_id = {node["id"]: node for node in nodes}
    roles = list(dict.fromkeys(node["role"] for node in nodes))
    pairs = [
        (index[chosen], index[rejected])
        for chosen, rejected in uses.pairs.get(tree["question_id"], ())
        if chosen in index and rejected in index
    ]
    return {
        "id": tree["question_id"],
        "question": tree["question"],
        "answer": tree["answer"],
        "roles": roles,
        "pairs": pairs,
        "nodes": [
            {
                "id": node["id"],
                "depth": roles.index(node["role"]),
                "parent": -1 if node["parent"] is None else index[node["parent"]],
                "text": node["completion"],
                "prompt": templates.number(node["prompt"], tree["question"], _earlier(node, by_id)),
                "value": node["value"],
                "label": node["label"],
                "correct": own_correct(node),
                "parsed": node.get("parsed"),
                "leaf": "reward" in node,
                "logprob": round(sum(node["logprobs"]), 3),
                "tokens": len(node["token_ids"]),
                "finish": node["finish"],
                "sft": uses.examples.get(node["id"], []),
            }
            for node in nodes
        ],
    }


def _earlier(node: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The texts of the turns before a node, the first turn's first."""
    texts = []
    while node["parent"] is not None:
        node = by_id[node["parent"]]
        texts.insert(0, node["completion"])
    return texts


def own_correct(node: Mapping[str, Any]) -> bool | None:
    """Whether the answer this turn itself states is right; None when it states none."""
    return bool(node["reward"]) if "reward" in node else node.get("correct")


def entry(tree: Tree) -> dict[str, Any]:
    """One line of the question list: its leaves as text of 0 and 1, and what to filter by.

    A leaf is saved where the first turn's own answer was wrong and the last one's is right, and
    broken the other way round. A question flips if any leaf did either.
    """
    nodes = {node["id"]: node for node in tree["nodes"]}
    leaves, saved, broke = [], 0, 0
    for node in tree["nodes"]:
        if "reward" not in node:
            continue
        right, first = bool(node["reward"]), node
        while first["parent"] is not None:
            first = nodes[first["parent"]]
        drafted = own_correct(first)
        leaves.append("1" if right else "0")
        saved += right and drafted is False
        broke += not right and drafted is True
    return {
        "id": tree["question_id"],
        "text": tree["question"][:SHORT],
        "answer": str(tree["answer"])[:SHORT],
        "leaves": "".join(leaves),
        "saved": saved,
        "broke": broke,
    }


def _count(tree: Tree, totals: Totals) -> None:
    depth_of = {
        role: i + 1 for i, role in enumerate(dict.fromkeys(n["role"] for n in tree["nodes"]))
    }
    totals.roles = totals.roles or list(depth_of)
    levels: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for node in tree["nodes"]:
        totals.values[node["role"]][node["value"]] += 1
        levels[depth_of[node["role"]]].append(node)
    while len(totals.levels) <= len(depth_of):
        totals.levels.append([0.0] * 5)
    rewards = [node["reward"] for node in tree["nodes"] if "reward" in node]
    root = sum(rewards) / len(rewards)
    for sums, found in ((totals.levels[0], [root]), *_values(levels, totals)):
        for i, value in enumerate((min(found), sum(found) / len(found), max(found))):
            sums[i] += value
    for depth, nodes in levels.items():
        graded = [own_correct(node) for node in nodes if own_correct(node) is not None]
        totals.levels[depth][3] += sum(graded)
        totals.levels[depth][4] += len(graded)
    totals.trees += 1


def _values(
    levels: Mapping[int, list], totals: Totals
) -> Iterator[tuple[list[float], list[float]]]:
    for depth, nodes in levels.items():
        yield totals.levels[depth], [node["value"] for node in nodes]


def depth_levels(totals: Totals) -> list[tuple[str, float, float, float, float | None]]:
    """Per depth: role, mean over trees of the worst, mean and best value, accuracy of its turns."""
    return [
        (
            role,
            *(total / totals.trees for total in sums[:3]),
            sums[3] / sums[4] if sums[4] else None,
        )
        for role, sums in zip(["question", *totals.roles], totals.levels, strict=False)
    ]
