"""Breadth-first expansion of search trees over a pool of questions (method, section 3.1).

All drafts of the pool are drawn, then all critiques of all drafts, and so on: within a level only
one role's adapter is in use, siblings share their prefix, and the sampler always has work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from malt_jax.sampling.request import Completion, Request, SamplingParams
from malt_jax.tasks.base import Question
from malt_jax.tree.keys import node_key
from malt_jax.tree.prompts import Prompt, render
from malt_jax.tree.roles import Pipeline, Role

if TYPE_CHECKING:
    from malt_jax.sampling.sampler import Sampler


@dataclass(frozen=True)
class Node:
    """One sampled completion and where it stands in its question's tree."""

    path: tuple[int, ...]
    """Sibling indices from the root: (2, 0) is the first critique of the third draft."""
    prompt: Prompt
    completion: Completion
    text: str
    """The completion decoded, without its end token."""


@dataclass(frozen=True)
class Tree:
    """One question's nodes: `levels[d]` has the `b_1 * ... * b_{d+1}` nodes of depth d in order."""

    question: Question
    levels: list[list[Node]]


def sampling_params(role: Role, end_ids: Sequence[int]) -> SamplingParams:
    """How the sampler draws a role's completions."""
    config = role.config
    return SamplingParams(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        end_ids=tuple(end_ids),
        stop=config.stop,
    )


def completion_text(completion: Completion, end_ids: Sequence[int], tokenizer: Any) -> str:
    ids = [int(token) for token in completion.tokens]
    if ids and completion.finish == "eos" and ids[-1] in end_ids:
        ids = ids[:-1]
    return tokenizer.decode(ids)


def expand(
    questions: Sequence[Question],
    pipeline: Pipeline,
    sampler: Sampler,
    tokenizer: Any,
    *,
    seed: int,
    round: int | str = 0,
    adapters: Mapping[str, Any] | None = None,
    context: int,
    overflow: str = "refuse",
    on_level: Callable[[Role, int], None] | None = None,
) -> list[Tree]:
    """The whole tree of every question, one level of all trees at a time.

    `adapters`: each role's policy by name, an adapter or whole weights; without one it is the base.
    `context`: the model's longest sequence in tokens. A node's key comes from the seed, the round
    and its path.
    """
    trees = [Tree(question, []) for question in questions]
    for depth, role in enumerate(pipeline.roles):
        room = context - role.config.max_new_tokens
        requests: list[Request] = []
        prompts: list[Prompt] = []
        parents = list(product(*(range(b) for b in pipeline.branches[:depth])))
        for tree in trees:
            for parent in parents:
                turns = _turns(tree, pipeline, parent)
                where = pipeline.node_id(tree.question.id, parent)
                prompt = render(
                    role.template,
                    tree.question.text,
                    turns,
                    tokenizer,
                    room=room,
                    overflow=overflow,  # type: ignore[arg-type]
                    where=f"{where}, {role.name}",
                )
                ids = (
                    pipeline.node_id(tree.question.id, (*parent, i))
                    for i in range(role.config.branch)
                )
                keys = np.stack([node_key(seed, "search", round, node) for node in ids])
                prompts.append(prompt)
                requests.append(Request(prompt=prompt.ids, keys=keys))
        if on_level:
            on_level(role, len(requests) * role.config.branch)
        adapter = (adapters or {}).get(role.name)
        drawn = sampler.sample(requests, sampling_params(role, tokenizer.end_ids), adapter=adapter)
        for index, tree in enumerate(trees):
            level = []
            for offset, parent in enumerate(parents):
                at = index * len(parents) + offset
                for i, completion in enumerate(drawn[at]):
                    text = completion_text(completion, tokenizer.end_ids, tokenizer)
                    level.append(Node((*parent, i), prompts[at], completion, text))
            tree.levels.append(level)
    return trees


def _turns(tree: Tree, pipeline: Pipeline, path: tuple[int, ...]) -> dict[str, str]:
    """The texts along a path by role name, earliest first."""
    turns = {}
    index = 0
    for depth, step in enumerate(path):
        index = index * pipeline.branches[depth] + step
        turns[pipeline.roles[depth].name] = tree.levels[depth][index].text
    return turns
