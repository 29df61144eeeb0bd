"""Repeats: siblings with the same tokens are one turn that was followed more than once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from statistics import fmean

from malt_jax.tree.node import EQUAL, VALUE_DIGITS, Tree


def pool_repeats(tree: Tree, threshold: float = 0.5) -> Tree:
    """The valued tree in which siblings with equal tokens have the mean of their values.

    Equal turns under one prefix have one true value, and what differs between their values is
    luck. Pooled, none of them counts as better than another, and all are above `threshold` or none.
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
    pooled = (
        replace(node, value=values[node.id], label=values[node.id] > threshold + EQUAL)
        if node.id in values
        else node
        for node in tree.nodes
    )
    return replace(tree, nodes=tuple(pooled))
