"""Divergence: how far a trained role has moved from the policy that its training started from.

For a completion y that a trained policy pi drew from a prompt x, the mean over y's tokens of

    log pi(y | x) - log pi_start(y | x),

whose mean over many completions estimates the KL divergence of pi from pi_start per token (at
temperature 1; a colder sampler draws likelier completions). A role that has moved far while its
turns are no better has learnt something else than its task.
"""

from __future__ import annotations

from collections import defaultdict

from malt_jax.credit.influence import Asked, Score, gains
from malt_jax.tree.node import Forest


def divergence(forest: Forest, score: Score) -> dict[str, float]:
    """How much likelier every completion has become, in nats per token, by node id.

    log pi is stored with the node; `score` gives log pi_start, in one pass without sampling. Nodes
    without stored log-probabilities have none.
    """
    asked: Asked = defaultdict(dict)
    stored: dict[str, float] = {}
    for tree in forest.trees:
        for node in tree.nodes:
            if node.token_ids and len(node.logprobs) == len(node.token_ids):
                asked[node.role][node.id] = node.prompt_ids, node.token_ids
                stored[node.id] = sum(node.logprobs)
    return gains(stored, asked, score)
