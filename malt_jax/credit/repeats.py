"""Repeats: siblings with the same tokens are one turn that was followed more than once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from statistics import fmean

from malt_jax.tree.node import VALUE_DIGITS, Tree


def pool_repeats(tree: Tree) -> Tree:
    """The valued tree in which siblings with equal tokens have the mean of their values.

    Equal turns under one prefix have one true value, and what differs between their values is
    luck. Pooled, none of them counts as better than another. Labels stay as they are.
    """
    values: dict[str, float] = {}
    for siblings in tree.children.values():
        equal = defaultdict(list)
        for node in siblings:
            equal[node.token_ids].append(node)
        for nodes in equal.values():
            if len({node.value for node in nodes}) > 1:
                mean = round(fmean(node.value for node in nodes), VALUE_DIGITS)
                values |= {node.id: mean for node in nodes}
    if not values:
        return tree
    pooled = (replace(n, value=values[n.id]) if n.id in values else n for n in tree.nodes)
    return replace(tree, nodes=tuple(pooled))
