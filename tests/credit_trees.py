"""Valued forests from arrays of rewards, for tests of credit and role data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from malt_jax.tree.node import Forest, Node, Tree
from malt_jax.tree.roles import abbreviations
from malt_jax.tree.values import value_forest

CHAINS = {
    1: ("generator",),
    2: ("generator", "refiner"),
    3: ("generator", "verifier", "refiner"),
    4: ("generator", "verifier", "refiner", "judge"),
}


def forest_of(
    rewards: np.ndarray,
    roles: Sequence[str],
    prefix: str = "Q",
    said: Mapping[str, str] | None = None,
    lengths: int = 0,
    ragged: tuple[int, ...] = (),
) -> Forest:
    """A valued forest with the given leaf rewards, float32 `[Q, b_1, ..., b_d]`.

    `ragged`: the `branches` of ragged trees, whose absent leaves are NaN.

    Every role but the verifier answers. Completions are the last part of the node's id, or what
    `said` has for it; an inner turn is right if it says "#1". `lengths`: every so many-th turn is
    cut at its limit.
    """
    said, short, trees = said or {}, abbreviations(list(roles)), []
    for number in range(len(rewards)):
        question, nodes, count = f"{prefix}{number}", [], 0
        for depth, role in enumerate(roles, start=1):
            for path in itertools.product(*map(range, rewards.shape[1 : depth + 1])):
                if ragged and np.isnan(rewards[(number, *path)]).all():
                    continue
                names = [f"{s}{i}" for s, i in zip(short, path, strict=False)]
                leaf, text = depth == len(roles), said.get(names[-1], names[-1])
                reward = float(rewards[(number, *path)]) if leaf else None
                count += 1
                nodes.append(
                    Node(
                        id="/".join([question, *names]),
                        role=role,
                        parent="/".join([question, *names[:-1]]) if depth > 1 else None,
                        prompt=f"{role} {question} {names[:-1]}",
                        prompt_ids=tuple(map(ord, f"{number}{role}{names[:-1]}")),
                        cut=0,
                        completion=text,
                        token_ids=(*map(ord, text), 2),
                        logprobs=tuple(-0.5 for _ in (*text, "end")),
                        finish="length" if lengths and count % lengths == 0 else "eos",
                        parsed=None if role == "verifier" else text,
                        correct=None if role == "verifier" else bool(reward) or text == "#1",
                        reward=reward,
                    )
                )
        branches = ragged or tuple(rewards.shape[1:])
        shape = branches, tuple(roles), tuple(nodes), bool(ragged)
        trees.append(Tree(question, question, "1", {}, *shape))
    return value_forest(Forest(trees))
