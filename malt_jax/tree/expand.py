"""Breadth-first expansion of search trees over a block of questions (docs/method.md, section 2).

All drafts of the block are sampled first, then all critiques of all drafts, and so on. Within a
level one role's policy is in use, siblings share their prompt, and the sampler always has work.
`streaming.py` does the same without waiting for the end of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from malt_jax.errors import UserError
from malt_jax.models.thoughts import WrittenThoughts
from malt_jax.sampling.request import Completion, Request, SamplingParams, ThoughtBudget
from malt_jax.tasks.base import Question
from malt_jax.tree.keys import node_key
from malt_jax.tree.node import LOGPROB_DIGITS, Forest, Node, Tree
from malt_jax.tree.prompts import Overflow, Prompt, render
from malt_jax.tree.roles import Chain, Role, of_role
from malt_jax.tree.thoughts import Said, read_completion

if TYPE_CHECKING:
    from malt_jax.models.model import Model
    from malt_jax.sampling.sampler import Sampler


class Prefix(NamedTuple):
    """What one group of siblings continues: a question and the turns so far."""

    question: Question
    path: tuple[int, ...]
    """Sibling indices of the turns so far: (2, 0) is the first critique of the third draft."""
    turns: Mapping[str, str]
    """Texts of the turns so far by role, the earliest first."""


Siblings = Callable[[int, Sequence[Prefix]], Sequence[int]]
"""How many siblings each prefix of a depth has, 0 being the drafts'."""


def expand(
    models: Model | Mapping[str, Model],
    samplers: Sampler | Mapping[str, Sampler],
    questions: Sequence[Question],
    pipeline: Chain,
    *,
    adapters: Mapping[str, Any],
    seed: int,
    round: int | str,
    overflow: Overflow = "refuse",
    on_level: Callable[[str, int], None] = lambda role, completions: None,
    known: Mapping[str, Node] = MappingProxyType({}),
    siblings: Siblings | None = None,
) -> Forest:
    """The whole tree of every question, not graded yet.

    `models` and `samplers`: those of all roles, or each role's by name. `adapters`: each role's
    policy by name, an adapter or whole weights; the base model where there is none.
    The random key of a node depends on the seed, the round and the node's path only, so a tree is
    the same whatever is sampled with it. `overflow`: whether a prompt that is too long is refused
    or truncated. `on_level` is called with the role and the number of completions of each level
    before it is sampled. `siblings` says how many each prefix has, by default the `branch` of the
    role; the trees are ragged then. Nodes that are `known`, by id, are not sampled again.
    """
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids) or any("/" in one for one in ids):
        raise ValueError("each question needs an id of its own, without a slash")
    prefixes = [Prefix(question, (), {}) for question in questions]
    # Nodes are added level by level, the order in which trees and forests hold them.
    nodes: dict[str, list[Node]] = {question.id: [] for question in questions}
    for depth, role in enumerate(pipeline.roles):
        model = of_role(models, role.name)
        # The longest possible completion is kept free, so no context ends one early.
        room = model.spec.context - role.config.max_new_tokens
        # One request per prefix: its siblings share the prompt, and each has a key of its own.
        tokenizer = role.tokenizer(model.tokenizer)
        sizes = siblings(depth, prefixes) if siblings else [role.config.branch] * len(prefixes)
        families = [family_of(*one, pipeline) for one in zip(prefixes, sizes, strict=True)]
        missing = [[id for id in family if id not in known] for family in families]
        asked = [at for at, ids in enumerate(missing) if ids]
        prompts = [
            prompt_of(role, prefixes[at], pipeline, tokenizer, room, overflow) for at in asked
        ]
        requests = [
            Request(prompt.ids, sibling_keys(missing[at], seed, round))
            for at, prompt in zip(asked, prompts, strict=True)
        ]
        sampled: list[list[Completion]] = []
        if requests:
            on_level(role.name, sum(map(len, missing)))
            sampled = of_role(samplers, role.name).sample(
                requests,
                sampling_params(role, tokenizer),
                adapter=adapters.get(role.name),
                siblings=role.config.branch,
            )
        drawn = {
            id: (prompt, completion)
            for at, prompt, completions in zip(asked, prompts, sampled, strict=True)
            for id, completion in zip(missing[at], completions, strict=True)
        }
        # Every completion is a node, and the prefix of the next level.
        deeper = []
        for prefix, family in zip(prefixes, families, strict=True):
            for index, id in enumerate(family):
                path = (*prefix.path, index)
                node = known.get(id) or completed_node(
                    role, prefix.question, path, *drawn[id], pipeline, tokenizer
                )
                nodes[prefix.question.id].append(node)
                # The order of the turns matters: `{previous}` stands for the last of them.
                said = role.passed_on(node.completion, node.thought)
                turns = {**prefix.turns, role.name: said}
                deeper.append(Prefix(prefix.question, path, turns))
        prefixes = deeper
    ragged = siblings is not None
    return Forest([tree_of(q, pipeline, nodes[q.id], ragged) for q in questions])


def sampling_params(role: Role, tokenizer: Any) -> SamplingParams:
    """How the sampler draws a role's completions; `tokenizer`: that of `Role.tokenizer`.

    Raises UserError for a budget of thoughts with a model that has none, or too small for it.
    """
    config = role.config
    return SamplingParams(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        end_ids=tuple(tokenizer.end_ids),
        thought=_thought_budget(role, tokenizer) if config.thinking.budget else None,
        stop=config.stop,
        # Only stop texts ask for it; calls that differ in nothing else stay in one batch.
        thoughts=tokenizer.thoughts if config.stop else None,
    )


def _thought_budget(role: Role, tokenizer: Any) -> ThoughtBudget:
    thinking, longest = role.config.thinking, role.config.max_new_tokens
    if tokenizer.thoughts is None:
        raise UserError(
            f"thinking.budget: found {thinking.budget}, but the model's chat template writes no "
            "thoughts; leave it out."
        )
    form = tokenizer.thoughts
    if isinstance(form, WrittenThoughts):
        raise UserError(
            f"thinking.budget: found {thinking.budget}, but {form.end} is no token of this model, "
            "so a thought cannot be closed in its place; leave it out."
        )
    closing = tuple(tokenizer.encode(thinking.conclusion + form.closing))
    if thinking.budget + len(closing) >= longest:
        raise UserError(
            f"thinking.budget: found {thinking.budget}, but closing a thought takes "
            f"{len(closing)} tokens and leaves none of max_new_tokens ({longest}) for the answer; "
            "lower it."
        )
    return ThoughtBudget(thinking.budget, form.begin, form.end, closing, form.inside, form.blank)


def prompt_of(
    role: Role, prefix: Prefix, pipeline: Chain, tokenizer: Any, room: int, overflow: Overflow
) -> Prompt:
    """The prompt of a role after some turns."""
    where = f"{pipeline.node_id(prefix.question.id, prefix.path)}, {role.name}"
    text = prefix.question.text
    return render(
        role.template, text, prefix.turns, tokenizer, room=room, overflow=overflow, where=where
    )


def family_of(prefix: Prefix, size: int, pipeline: Chain) -> list[str]:
    """The ids of a prefix's siblings."""
    return [pipeline.node_id(prefix.question.id, (*prefix.path, index)) for index in range(size)]


def sibling_keys(ids: Sequence[str], seed: int, round: int | str) -> np.ndarray:
    """One random key per sibling, uint32 `[n, 2]`."""
    return np.stack([node_key(seed, "search", round, id) for id in ids])


def completed_node(
    role: Role,
    question: Question,
    path: tuple[int, ...],
    prompt: Prompt,
    completion: Completion,
    pipeline: Chain,
    tokenizer: Any,
    said: Said | None = None,
) -> Node:
    """The node of a completion, not graded yet. `said`: how it is read, if that is known."""
    if said is None:
        said = read_completion(completion.tokens, completion.finish, tokenizer, tokenizer.thoughts)
    return Node(
        id=pipeline.node_id(question.id, path),
        role=role.name,
        parent=pipeline.node_id(question.id, path[:-1]) if len(path) > 1 else None,
        prompt=prompt.text,
        prompt_ids=tuple(map(int, prompt.ids)),
        cut=prompt.cut,
        completion=said.text,
        token_ids=tuple(map(int, completion.tokens)),
        logprobs=tuple(round(float(p), LOGPROB_DIGITS) for p in completion.logprobs),
        finish=completion.finish,
        # Only a mark for `grade`: False says that the role answers, None that it does not.
        correct=False if role.config.answers else None,
        thought=said.thought,
        unclosed=said.unclosed,
    )


def tree_of(
    question: Question, pipeline: Chain, nodes: Sequence[Node], ragged: bool = False
) -> Tree:
    """The tree of a question from its nodes, which are listed level by level."""
    names = tuple(role.name for role in pipeline.roles)
    return Tree(
        question.id, question.text, question.answer, question.meta, pipeline.branches, names,
        tuple(nodes), ragged,
    )  # fmt: skip
