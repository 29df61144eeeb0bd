"""Each role's SFT examples and DPO pairs from valued trees (method, sections 3.3 and 3.4)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from malt_jax.config.data import DataConfig
from malt_jax.tree.keys import draw_order

Row = dict[str, Any]


@dataclass(frozen=True)
class RoleData:
    """What one role learns from, in TRL's columns plus provenance, and what was left out."""

    sft: list[Row] = field(default_factory=list)
    dpo: list[Row] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)


def role_data(
    records: Iterable[dict[str, Any]], roles: Sequence[str], config: DataConfig, seed: int
) -> dict[str, RoleData]:
    """Every role's data.

    SFT: all positives (V above the threshold), the same token ids under the same prompt once.
    DPO: a positive and a negative sibling under the same prefix; which ones is `config.pairs`.
    A completion cut at its length limit is never an example to follow (it has no end token), but
    may be a rejected one; siblings with the same tokens are no pair.
    """
    data = {role: RoleData() for role in roles}
    for record in records:
        families: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
        labels = {node["id"]: node["label"] for node in record["nodes"]}
        for node in record["nodes"]:
            families[node["role"], node["parent"]].append(node)
        for (role, parent), siblings in families.items():
            _family(data[role], record["question_id"], role, siblings, config, seed)
            mended = parent is not None and not labels[parent]
            counts = data[role].counts
            counts["positives_behind_negative"] += mended * sum(n["label"] for n in siblings)
    if config.sft == "pairs":
        for rows in data.values():
            chosen = {row["chosen_node_id"] for row in rows.dpo}
            rows.sft[:] = [row for row in rows.sft if row["node_id"] in chosen]
    for role in roles:
        _drop_repeats(data[role])
    return data


def star_data(records: Iterable[dict[str, Any]], role: str) -> list[Row]:
    """The single-agent STaR baseline's examples: first-role drafts that are right themselves."""
    rows = [
        _example(record["question_id"], role, node) | {"role": "star"}
        for record in records
        for node in record["nodes"]
        if node["role"] == role and node["correct"] and node["finish"] != "length"
    ]
    data = RoleData(sft=rows)
    _drop_repeats(data)
    return data.sft


def tree_counts(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Trees all right, all wrong and mixed; answers unparsed, completions and prompts cut."""
    counts: Counter = Counter(
        trees=0, all_right=0, all_wrong=0, mixed=0, nodes=0, unparsed=0, length=0, cut_prompts=0
    )
    for record in records:
        rewards = [node["reward"] for node in record["nodes"] if "reward" in node]
        kind = "all_right" if all(rewards) else "mixed" if any(rewards) else "all_wrong"
        counts["trees"] += 1
        counts[kind] += 1
        for node in record["nodes"]:
            counts["nodes"] += 1
            counts["unparsed"] += "reward" in node and node["parsed"] is None
            counts["length"] += node["finish"] == "length"
            counts["cut_prompts"] += node["cut"] > 0
    return dict(counts)


def _family(
    data: RoleData, question: str, role: str, siblings: list[Row], config: DataConfig, seed: int
) -> None:
    positives = [node for node in siblings if node["label"]]
    negatives = [node for node in siblings if not node["label"]]
    whole = [node for node in positives if node["finish"] != "length"]
    data.counts["positives"] += len(positives)
    data.counts["negatives"] += len(negatives)
    data.counts["positives_cut_at_limit"] += len(positives) - len(whole)
    data.sft.extend(_example(question, role, node) for node in whole)
    pairs = [(p, n) for p in whole for n in negatives]
    distinct = [(p, n) for p, n in pairs if p["token_ids"] != n["token_ids"]]
    data.counts["pairs_of_equal_text"] += len(pairs) - len(distinct)
    data.counts["pairs_possible"] += len(distinct)
    for chosen, rejected in _choose(distinct, config, seed):
        data.dpo.append(_pair(question, role, chosen, rejected))


def _choose(pairs: list[tuple[Row, Row]], config: DataConfig, seed: int) -> list[tuple[Row, Row]]:
    if config.pairs == "all" or not pairs:
        return pairs
    parent = pairs[0][0]["parent"] or pairs[0][0]["id"]
    order = draw_order(seed, len(pairs), "pairs", parent)
    if config.pairs == "best_worst":
        # Python's sort is stable: equal gaps stay in the drawn order.
        order.sort(key=lambda i: pairs[i][1]["value"] - pairs[i][0]["value"])
    return [pairs[i] for i in order[: config.pairs_per_prefix]]


def _example(question: str, role: str, node: Row) -> Row:
    return {
        "prompt": node["prompt"],
        "completion": node["completion"],
        "role": role,
        "question_id": question,
        "node_id": node["id"],
        "value": node["value"],
        "prompt_ids": node["prompt_ids"],
        "completion_ids": node["token_ids"],
    }


def _pair(question: str, role: str, chosen: Row, rejected: Row) -> Row:
    return {
        "prompt": chosen["prompt"],
        "chosen": chosen["completion"],
        "rejected": rejected["completion"],
        "role": role,
        "question_id": question,
        "node_id": chosen["parent"] or question,
        "chosen_node_id": chosen["id"],
        "rejected_node_id": rejected["id"],
        "value": chosen["value"],
        "chosen_value": chosen["value"],
        "rejected_value": rejected["value"],
        "prompt_ids": chosen["prompt_ids"],
        "chosen_ids": chosen["token_ids"],
        "rejected_ids": rejected["token_ids"],
    }


def _drop_repeats(data: RoleData) -> None:
    seen: set[tuple] = set()
    kept = []
    for row in data.sft:
        key = (tuple(row["prompt_ids"]), tuple(row["completion_ids"]))
        if key not in seen:
            seen.add(key)
            kept.append(row)
    data.counts["repeats"] += len(data.sft) - len(kept)
    data.sft[:] = kept
