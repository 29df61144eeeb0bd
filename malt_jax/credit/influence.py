"""Influence: does a turn listen to the one before it?

For an answer r after a critique v, the mean over r's tokens of

    log P(r | q, g, v) - log P(r | q, g),

where the second prompt is the first one with the critique left blank. Near 0 the answer would have
been written without the critique, so whatever the critique is credited with is luck; far above 0
the turn depends on it. Adapted from arXiv 2511.02303, which compares predictions with and without
another agent's message.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from malt_jax.tree.node import Forest
from malt_jax.tree.prompts import PromptTokenizer, render
from malt_jax.tree.roles import Chain, of_role

Sequences = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
"""Token ids of prompts and of the completions after them."""
Asked = dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]
"""The prompt and the completion to score of each node, by role and node id."""
Score = Callable[[str, Sequences], np.ndarray]
"""Log-probability of each completion of a role, summed over its tokens; NaN if not scored."""


def influence(
    forest: Forest,
    pipeline: Chain,
    tokenizer: PromptTokenizer | Mapping[str, PromptTokenizer],
    context: int | Mapping[str, int],
    score: Score,
) -> dict[str, float]:
    """The influence of the turn before on every node that has one, in nats per token, by node id.

    `tokenizer` and `context` are those of the model of all roles, or each role's by name.
    log P(r | q, g, v) is stored with the node. `score` computes the other under the weights that
    sampled it: one pass over the distinct completions, without sampling. Nodes without stored
    log-probabilities have none. The two terms come from two programs, so where these round
    differently, in bfloat16 or with `sampler.weights: int8`, the difference holds that as well.
    """
    roles = {role.name: role for role in pipeline.roles}
    alone: Asked = defaultdict(dict)
    stored: dict[str, float] = {}
    for tree in forest.trees:
        turns: dict[str | None, dict[str, str]] = {None: {}}
        for node in tree.nodes:
            earlier = turns[node.parent]
            role = roles[node.role]
            said = role.passed_on(node.completion, node.thought)
            turns[node.id] = {**earlier, node.role: said}
            # Trees from elsewhere may lack what the sampler stores. Of a prompt that was cut, the
            # one without the last turn would have more of the others.
            scored = node.token_ids and len(node.logprobs) == len(node.token_ids)
            if not earlier or not scored or node.cut:
                continue
            prompt = render(
                role.template,
                tree.question,
                # The last turn keeps its place, because `{previous}` stands for it.
                {**earlier, next(reversed(earlier)): ""},
                role.tokenizer(of_role(tokenizer, role.name)),
                room=of_role(context, role.name) - role.config.max_new_tokens,
                overflow="truncate",
                where=node.id,
            )
            alone[node.role][node.id] = prompt.ids, node.token_ids
            stored[node.id] = sum(node.logprobs)
    return gains(stored, alone, score)


def gains(stored: Mapping[str, float], asked: Asked, score: Score) -> dict[str, float]:
    """How much likelier each node's completion was than `score` finds it, in nats per token."""
    found: dict[str, float] = {}
    for name, sequences in asked.items():
        # Completions such as "ok" repeat, so there are fewer distinct sequences than nodes.
        distinct = list(dict.fromkeys(sequences.values()))
        scored = dict(zip(distinct, score(name, distinct).tolist(), strict=True))
        for node_id, ids in sequences.items():
            if not math.isnan(scored[ids]):
                found[node_id] = (stored[node_id] - scored[ids]) / len(ids[1])
    return found
