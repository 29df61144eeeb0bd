"""What a config makes of the signals: which nodes are positive, and how much they weigh."""

from __future__ import annotations

from dataclasses import dataclass

from malt_jax.config.data import DataConfig
from malt_jax.credit.repeats import pool_repeats
from malt_jax.credit.signals import Signals
from malt_jax.tree.node import EQUAL, Node, Tree


@dataclass(frozen=True)
class Selection:
    """The choices of a `DataConfig` on the nodes of a valued forest."""

    config: DataConfig
    signals: Signals
    threshold: float = 0.5
    """Theta, by which the trees are labelled."""

    def tree(self, tree: Tree) -> Tree:
        """The tree as the selection reads it.

        The published rule takes values as found. To be better than the siblings in more than luck,
        equal siblings are one turn.
        """
        if self.config.positives == "value":
            return tree
        for node in tree.nodes:
            off = node.value - self.threshold
            if self.config.positives == "both" and node.label != (off > 0) and abs(off) > 2 * EQUAL:
                raise ValueError(
                    f"threshold: found {self.threshold:g}, but node {node.id} with a value of "
                    f"{node.value:g} is labelled {'above' if node.label else 'below'} it; give the "
                    "threshold that the trees were labelled by."
                )
        return pool_repeats(tree, self.threshold)

    def sign(self, node: Node) -> int:
        """1 for a positive node, -1 for a negative one, 0 for one that says nothing.

        By value every node is one or the other (MALT, section 3.3). By advantage a turn that did as
        well as its siblings is neither: it changed nothing, so it teaches nothing. `both` asks for
        both: above the threshold and better than the siblings, or neither of the two.
        """
        advantage = self.signals[node.id]["advantage"]
        above = 1 if node.label else -1
        better = (advantage > 0) - (advantage < 0)
        if self.config.positives == "value":
            return above
        if self.config.positives == "advantage":
            return better
        return above if above == better else 0

    def weight(self, node: Node, *, desirable: bool) -> float:
        """Weight of the node as an example to follow (`desirable`) or to avoid, before scaling."""
        sign = 1 if desirable else -1
        if self.config.weights == "advantage":
            # A positive node that did worse than its siblings is no example to follow.
            return max(sign * self.signals[node.id]["advantage"], 0.0)
        if self.config.weights == "confidence":
            above = self.signals[node.id].get("confidence", 1.0 if node.label else 0.0)
            return above if desirable else 1 - above
        return 1.0

    def advantage(self, node: Node) -> float:
        """The advantage of the node in the policy gradient."""
        names = {"sibling": "advantage", "normalised": "normalised", "global": "global"}
        return self.signals[node.id][names[self.config.advantage]]
