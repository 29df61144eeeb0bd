"""What credit rules select from single prefixes of a finished search, to read by eye.

    python scripts/read_siblings.py runs/rules/parity/seed-0 verifier --rules published,advantage

Draws prefixes of a role whose siblings have different values and of which the rules do not select
the same, half of them after a right answer and half after a wrong one, and prints each as a table:
every sibling with its value, its advantage and what each rule makes of it. *SFT*: an example to
imitate; +n and -n: preferred or rejected in n pairs, or desirable or undesirable under KTO; a
number with decimals: its advantage in the policy gradient. Only what the rule's phases train on is
shown. For a role that judges, a table follows of how many of the verdicts that each rule teaches
are true. Reads one round's trees and writes nothing.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import malt_jax as malt
from malt_jax.config.pipeline import RoleConfig, split_phases
from malt_jax.config.run import load
from malt_jax.credit.rules import get_rule
from malt_jax.credit.signals import Signals, node_signals
from malt_jax.credit.verdict import read_verdict, verdict_agreement
from malt_jax.data.role_data import RoleData
from malt_jax.evaluation import cells
from malt_jax.evaluation.table import Table, numbers, texts
from malt_jax.storage.jsonl import read_records
from malt_jax.tree.node import EQUAL, Forest, Node, Tree

Choices = dict[str, str]
"""Node id -> what a rule makes of the node."""


def choices(data: RoleData, phases: Sequence[str]) -> Choices:
    """What one role's training takes from each node."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    if "sft" in phases:
        for example in data.sft:
            found[example.node_id].append("SFT")
    signs: Counter[tuple[str, str]] = Counter()
    for pair in data.dpo if "dpo" in phases else ():
        signs[pair.chosen_node_id, "+"] += 1
        signs[pair.rejected_node_id, "−"] += 1
    for one in data.kto if "kto" in phases else ():
        signs[one.node_id, "+" if one.label else "−"] += 1
    for (node, sign), count in signs.items():
        found[node].append(f"{sign}{count}")
    for example in data.pg if "pg" in phases else ():
        found[example.node_id].append(signed(example.advantage))
    return {node: ", ".join(told) for node, told in found.items()}


def truth(data: Mapping[str, RoleData], fits: Mapping[str, float]) -> Table:
    """Which share of the verdicts is true that each rule imitates, and that it prefers.

    `fits`: by node id, 1 for a true verdict and 0 for a false one; turns without one are left out.
    """
    columns = texts("rule") + numbers(
        "SFT", "true %", "pairs", "true over false %", "false over true %", "both alike %"
    )
    rows = []
    for name, learned in data.items():
        imitated = [fits[e.node_id] for e in learned.sft if e.node_id in fits]
        ids = [(pair.chosen_node_id, pair.rejected_node_id) for pair in learned.dpo]
        gaps = [fits[a] - fits[b] for a, b in ids if a in fits and b in fits]
        shares = [gaps.count(1), gaps.count(-1), gaps.count(0)]
        preferred = [cells.percent(n / len(gaps)) if gaps else "" for n in shares]
        true = cells.percent(fmean(imitated)) if imitated else ""
        rows.append([name, str(len(imitated)), true, str(len(gaps)), *preferred])
    return Table(columns, rows)


def signed(number: float) -> str:
    """A number with its sign and two decimals."""
    return f"{number:+.2f}".replace("-", "−")


def prefixes(forest: Forest, role: str) -> Iterator[tuple[Tree, list[Node], list[Node]]]:
    """(tree, turns before, siblings) of every prefix whose siblings have different values."""
    for tree in forest.trees:
        nodes = {node.id: node for node in tree.nodes}
        for parent, siblings in tree.children.items():
            values = [node.value for node in siblings]
            if siblings[0].role == role and max(values) - min(values) > EQUAL:
                before: list[Node] = []
                while parent is not None:
                    before.insert(0, nodes[parent])
                    parent = nodes[parent].parent
                yield tree, before, list(siblings)


def drawn(
    forest: Forest, role: str, selected: dict[str, Choices], count: int, seed: int
) -> list[tuple[Tree, list[Node], list[Node]]]:
    """Prefixes on which the rules differ: as many after right answers as after wrong ones."""
    sides: defaultdict[bool | None, list[tuple[Tree, list[Node], list[Node]]]] = defaultdict(list)
    for tree, before, siblings in prefixes(forest, role):
        made = {tuple(c.get(node.id) for node in siblings) for c in selected.values()}
        if len(made) > 1 or len(selected) == 1:
            answers = [node.correct for node in before if node.correct is not None]
            sides[answers[-1] if answers else None].append((tree, before, siblings))
    generator = random.Random(seed)
    share = -(-count // max(len(sides), 1))
    return [
        one
        for _, found in sorted(sides.items(), key=lambda side: str(side[0]))
        for one in generator.sample(found, min(share, len(found)))
    ][:count]


def show(
    tree: Tree,
    before: Sequence[Node],
    siblings: Sequence[Node],
    signals: Signals,
    selected: dict[str, Choices],
) -> str:
    """One prefix in Markdown."""
    said = {True: "right", False: "wrong", None: ""}
    lines = [f"**{siblings[0].id.rpartition('/')[0]}** asks `{tree.question}` (`{tree.answer}`)"]
    for node in before:
        told = f", {said[node.correct]}" if said[node.correct] else ""
        lines.append(f"{node.role}: `{node.completion}`{told}")
    columns = texts("turn") + numbers("V", "A", *selected)
    rows = [
        [
            node.completion,
            f"{node.value:.2f}",
            signed(signals[node.id]["advantage"]),
            *(chosen.get(node.id, "") for chosen in selected.values()),
        ]
        for node in siblings
    ]
    return "; ".join(lines) + "\n\n" + Table(columns, rows).markdown()


def main() -> None:
    """Prints the prefixes that were drawn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("role")
    parser.add_argument("--rules", default="published,advantage,pg")
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.run / "rounds" / f"{args.round:03d}" / "trees"
    shards = sorted(folder.glob("*.jsonl"))
    if not shards:
        parser.error(f"{folder} holds no trees")
    forest = Forest([t for shard in shards for t in read_records(shard, Tree.from_record)])
    if args.role not in forest.roles:
        parser.error(f"role: found {args.role!r}, allowed: {', '.join(forest.roles)}")
    config = load(str(args.run / "config.yaml"))
    theta = config.search.threshold
    signals = node_signals(forest, threshold=theta)
    last = args.role != forest.roles[0]
    role = RoleConfig(args.role, train="sft+dpo" if last else "sft")
    selected, examples = {}, {}
    for name in args.rules.split(","):
        selection = get_rule(name).selection(config.data)
        learned = malt.label(forest, selection, seed=config.seed, signals=signals, threshold=theta)[
            args.role
        ]
        examples[name] = learned
        selected[name] = choices(learned, split_phases(get_rule(name).phases_of(role)))
    for one in drawn(forest, args.role, selected, args.count, args.seed):
        print(show(*one, signals, selected), end="\n\n")
    fits: dict[str, float] = {}
    for tree in forest.trees:
        fits |= verdict_agreement(tree, {args.role: read_verdict})
    if fits:
        print(truth(examples, fits).markdown())


if __name__ == "__main__":
    main()
