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
SHORT = 160
"""Characters of a question that the list shows and the search looks through."""


@dataclass
class Uses:
    """Which nodes of a round were learnt from."""

    trained: set[str] = field(default_factory=set)
    """Roles and phases with data, as `verifier/dpo`."""
    examples: set[str] = field(default_factory=set)
    """Ids of the nodes that are SFT examples."""
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    """(chosen, rejected) node ids by question."""


@dataclass
class Totals:
    """Sums over the trees of a round."""

    roles: list[str] = field(default_factory=list)
    values: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    """Role -> value -> nodes."""
    levels: list[list[float]] = field(default_factory=list)
    """Per depth, the root first: sums of the worst, mean and best value; right and graded turns."""
    trees: int = 0


def read_uses(round_folder: Path) -> Uses:
    """The node ids named in a round's `data/ROLE/sft.jsonl` and `dpo.jsonl`."""
    uses = Uses()
    for folder in sorted(path for path in round_folder.glob("data/*") if path.is_dir()):
        if (folder / "sft.jsonl").exists():
            for row in read_lines(folder / "sft.jsonl"):
                uses.examples.add(row["node_id"])
                uses.trained.add(f"{row['role']}/sft")
        if (folder / "dpo.jsonl").exists():
            for row in read_lines(folder / "dpo.jsonl"):
                pair = (row["chosen_node_id"], row["rejected_node_id"])
                uses.pairs[row["question_id"]].append(pair)
                uses.trained.add(f"{row['role']}/dpo")
    return uses


def read_trees(round_folder: Path) -> Iterator[Tree]:
    for shard in sorted(round_folder.glob("trees/*.jsonl")):
        yield from read_lines(shard)


def add_trees(
    trees: Iterable[Tree], uses: Uses, pages: Pages, group: str, templates: Templates
) -> tuple[list[dict[str, Any]], Totals]:
    """Pages every tree; returns the list's entries and the totals."""
    entries, totals = [], Totals()
    for tree in trees:
        page, place = pages.add(group, compact(tree, uses, templates))
        entries.append(entry(tree) | {"page": page, "at": place})
        _count(tree, totals)
    return entries, totals


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
                "sft": node["id"] in uses.examples,
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
