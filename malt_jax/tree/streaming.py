"""Expansion of search trees without a barrier between levels or blocks of questions.

A critique is sampled as soon as its draft has ended, and while the last completions of one level
decode, rows that would be idle take those of the next. Prompts of earlier blocks go first, within a
block those of earlier levels. Trees are those of `expand`: a node's key depends on its path only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from malt_jax.sampling.open_call import Ended
from malt_jax.sampling.request import Policy, Request
from malt_jax.tasks.base import Question
from malt_jax.tree.expand import (
    Prefix,
    completed_node,
    family_of,
    prompt_of,
    sampling_params,
    sibling_keys,
    tree_of,
)
from malt_jax.tree.node import Forest, Node
from malt_jax.tree.prompts import Overflow, Prompt, fill
from malt_jax.tree.roles import Chain

if TYPE_CHECKING:
    from malt_jax.models.model import Model
    from malt_jax.sampling.sampler import Sampler

LONGEST = 16
"""Questions, those of most characters, whose prompts are encoded to bound the length of all."""


class Asked(NamedTuple):
    """What a request of the search asks for."""

    block: int
    level: int
    prefix: Prefix
    prompt: Prompt


def expand_blocks(
    model: Model,
    sampler: Sampler,
    blocks: Sequence[Sequence[Question]],
    pipeline: Chain,
    *,
    adapters: Mapping[str, Any],
    seed: int,
    round: int | str,
    overflow: Overflow = "refuse",
) -> Iterator[Forest]:
    """The trees of each block in turn, not graded yet; arguments as of `expand`.

    A later block is begun when the earlier ones no longer keep the sampler busy. Raises UserError
    where the roles' policies cannot be drawn in one batch (`sampling.open_call`).
    """
    roles = pipeline.roles
    tokenizers = [role.tokenizer(model.tokenizer) for role in roles]
    policies = [
        Policy(sampling_params(role, tokenizer), adapters.get(role.name))
        for role, tokenizer in zip(roles, tokenizers, strict=True)
    ]

    def request(block: int, level: int, prefix: Prefix) -> Request:
        role = roles[level]
        room = model.spec.context - role.config.max_new_tokens
        prompt = prompt_of(role, prefix, pipeline, tokenizers[level], room, overflow)
        ids = family_of(prefix, role.config.branch, pipeline)
        asked = Asked(block, level, prefix, prompt)
        return Request(
            prompt.ids,
            sibling_keys(ids, seed, round),
            policy=level,
            order=(block, level),
            tag=asked,
        )

    def grown(ended: Ended) -> Iterator[Request]:
        """Adds a completion to its tree; yields the request that follows from it."""
        block, level, prefix, prompt = ended.request.tag
        role, question = roles[level], prefix.question
        path = (*prefix.path, ended.sibling)
        node = completed_node(
            role, question, path, prompt, ended.completion, pipeline, tokenizers[level]
        )
        nodes[block][question.id, path] = node
        if level + 1 < len(roles):
            said = role.passed_on(node.completion, node.thought)
            turns = {**prefix.turns, role.name: said}
            yield request(block, level + 1, Prefix(question, path, turns))

    nodes: list[dict[tuple[str, tuple[int, ...]], Node]] = [{} for _ in blocks]
    longest = longest_prompt(model, pipeline, [q for block in blocks for q in block])
    begun = 0
    with sampler.open(policies, longest, max(pipeline.branches)) as call:
        for number, questions in enumerate(blocks):
            while len(nodes[number]) < pipeline.calls * len(questions):
                while begun < len(blocks) and call.hungry:
                    call.add(request(begun, 0, Prefix(q, (), {})) for q in blocks[begun])
                    begun += 1
                for ended in call.step():
                    call.add(grown(ended), ended.place)
            # Valuing the block compiles programs, for which no chunk may be under way.
            call.rest()
            yield _forest(questions, pipeline, nodes[number])
            nodes[number] = {}


def longest_prompt(model: Model, pipeline: Chain, questions: Sequence[Question]) -> int:
    """A bound on the tokens of all prompts, since those of later roles are not known before.

    It takes every earlier turn once and at its longest. A prompt can exceed the bound, for example
    if its template quotes a turn twice; it is then drawn when no others are left.
    """
    texts = sorted((question.text for question in questions), key=len)[-LONGEST:]
    bound, earlier = 1, 0
    for role in pipeline.roles:
        tokenizer, length = role.tokenizer(model.tokenizer), role.config.max_new_tokens
        empty = {"previous": "", **{other.name: "" for other in pipeline.roles}}
        filled = (fill(role.template, {**empty, "question": text}) for text in texts)
        longest = max((len(tokenizer.prompt_ids(text)) for text in filled), default=1)
        bound = max(bound, min(longest + earlier, model.spec.context - length))
        thinking = role.config.thinking
        # A thought that is not passed on is in no later prompt, however long it was.
        earlier += length - (0 if thinking.pass_on else thinking.budget or 0)
    return bound


def _forest(
    questions: Sequence[Question], pipeline: Chain, nodes: Mapping[tuple[str, tuple], Node]
) -> Forest:
    """The trees of one block, their nodes level by level."""
    found: dict[str, list[Node]] = {question.id: [] for question in questions}
    for question, path in sorted(nodes, key=lambda key: (len(key[1]), key[1])):
        found[question].append(nodes[question, path])
    return Forest([tree_of(question, pipeline, found[question.id]) for question in questions])
