"""Trees that were sampled elsewhere, for example with vLLM, completed to the record of a search.

A line of such a file is a line of a search shard, of which only the texts are needed:
`{"question_id", "question", "nodes": [{"id", "completion"}, ...]}`. Everything else is made here as
the search makes it, or checked if it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from malt_jax.checks import show
from malt_jax.sampling.request import Completion
from malt_jax.tasks.base import Grader, Question
from malt_jax.tree.expand import Prefix, completed_node, prompt_of, tree_of
from malt_jax.tree.grading import grade
from malt_jax.tree.node import WIDEST, Forest, Node, Tree, is_ragged
from malt_jax.tree.prompts import Overflow, Prompt
from malt_jax.tree.roles import Chain, Role, of_role
from malt_jax.tree.thoughts import Said, read_completion

FINISHES = ("eos", "stop", "length")


def complete(
    record: Mapping[str, Any],
    question: Question,
    pipeline: Chain,
    tokenizer: Any,
    context: int | Mapping[str, int],
    overflow: Overflow = "refuse",
) -> Tree:
    """The tree of one record, its answers not graded yet.

    `tokenizer` and `context` are those of the model of all roles, or each role's by name.
    Nodes may come in any order and are told apart by the path in their ids (`Q17/g2/v0`). Prompts
    are rendered from the templates of `pipeline`, with each role's own chat settings, and thoughts
    are told from answers as in a search. Without `token_ids` the completion is encoded,
    followed by an end token if its `finish` is `eos`, as it is by default. Without `logprobs` a
    node has none, so that it takes part in everything except policy gradients and influence. A
    record with `ragged` true may have any number of siblings that adaptive branching could give.
    A prompt that leaves no room for `max_new_tokens` is refused by UserError, or truncated, as in a
    search (`overflow`). Raises ValueError for a node that is missing, unknown, or contradicts what
    it should be.
    """
    prefix = f"{record.get('question_id', question.id)}/"
    given: dict[str, Mapping[str, Any]] = {}
    for node in record["nodes"]:
        name = node.get("id") if isinstance(node, Mapping) else None
        if not isinstance(name, str):
            raise ValueError(f"a node's id is {show(name)} and not a path like {prefix}g0")
        # Without its question an id is a path as well.
        if given.setdefault(name.removeprefix(prefix), node) is not node:
            raise ValueError(f"node {show(name)} comes twice")
    nodes: list[Node] = []
    ragged = is_ragged(record)
    prefixes = [Prefix(question, (), {})]
    for depth, role in enumerate(pipeline.roles):
        spoken = role.tokenizer(of_role(tokenizer, role.name))
        window = of_role(context, role.name)
        widest = pipeline.branches[depth] * (WIDEST if ragged else 1)
        deeper = []
        for before in prefixes:
            # As in a search, whatever the completions' lengths: siblings have one prompt.
            room = window - role.config.max_new_tokens
            prompt = prompt_of(role, before, pipeline, spoken, room, overflow)
            for index in range(widest):
                path = (*before.path, index)
                name = pipeline.node_id("", path)[1:]
                if ragged and index and name not in given:
                    break
                if name not in given:
                    raise ValueError(f"node {prefix}{name} is missing")
                node = _node(
                    given.pop(name), role, path, prompt, question, pipeline, spoken, window
                )
                said = role.passed_on(node.completion, node.thought)
                deeper.append(Prefix(question, path, {**before.turns, role.name: said}))
                nodes.append(node)
        prefixes = deeper
    if given:
        reason = "is none of this pipeline's"
        if ragged:
            reason += f", follows no sibling before it, or is beyond {WIDEST} x branch"
        raise ValueError(f"node {prefix}{next(iter(given))} {reason}")
    return tree_of(question, pipeline, nodes, ragged)


def _node(
    given: Mapping[str, Any],
    role: Role,
    path: tuple[int, ...],
    prompt: Prompt,
    question: Question,
    pipeline: Chain,
    tokenizer: Any,
    context: int,
) -> Node:
    id = pipeline.node_id(question.id, path)
    text, finish = given.get("completion"), given.get("finish", "eos")
    if not isinstance(text, str):
        raise ValueError(f"node {id} has no text as its completion")
    if finish not in FINISHES:
        raise ValueError(f"node {id} has the finish {show(finish)}, not {', '.join(FINISHES)}")
    if given.get("role", role.name) != role.name:
        raise ValueError(f"node {id} is by {show(given['role'])} and not by {role.name}")
    ids, said = _read(id, given, text, finish, tokenizer)
    if len(prompt.ids) + len(ids) > context:
        raise ValueError(
            f"node {id} has {len(ids)} tokens after a prompt of {len(prompt.ids)}, more than the "
            f"model's context of {context}; leave the question out"
        )
    # Training on another prompt than the one that is evaluated would go unnoticed.
    if given.get("prompt", prompt.text) != prompt.text:
        raise ValueError(
            f"node {id} was sampled from another prompt than the {role.name}'s template gives; set "
            "the template it was sampled with, or leave `prompt` out"
        )
    # The same text may be other tokens under other chat settings.
    if tuple(given.get("prompt_ids", prompt.ids)) != tuple(prompt.ids):
        raise ValueError(
            f"node {id} was sampled from other prompt_ids than the {role.name}'s template and chat "
            "settings (`system`, `chat_template_kwargs`) give; set those it was sampled with, or "
            "leave `prompt_ids` out"
        )
    completion = Completion(ids, _logprobs(id, given, len(ids)), finish)
    return completed_node(role, question, path, prompt, completion, pipeline, tokenizer, said)


def _read(
    id: str, given: Mapping[str, Any], text: str, finish: str, tokenizer: Any
) -> tuple[tuple[int, ...], Said]:
    """The tokens of a completion, and its thought and answer, which may be given in one text."""
    thought = given.get("thought") or ""
    if not isinstance(thought, str):
        raise ValueError(f"the thought of node {id} is no text")
    whole = thought + text
    ids = _token_ids(id, given.get("token_ids"), whole, finish, tokenizer)
    said = read_completion(ids, finish, tokenizer, tokenizer.thoughts)
    if said.thought is None:
        # The text as it was given: encoding and decoding it may change its blanks.
        said = Said(whole)
    if thought and (said.thought, said.text) != (thought, text):
        raise ValueError(
            f"the thought of node {id} is not where this model's chat template has it; give the "
            "whole text as `completion`, with the tokens around the thought"
        )
    if given.get("unclosed", said.unclosed) != said.unclosed:
        raise ValueError(f"node {id} has unclosed: {show(given['unclosed'])}, contrary to its text")
    # Answers without the thoughts before them would otherwise all count as thoughts.
    if said.unclosed and finish != "length" and "unclosed" not in given:
        raise ValueError(
            f"node {id} ends within its thought; give what came before as `thought`, or say "
            "`unclosed`: true"
        )
    return ids, said


def _token_ids(id: str, given: Any, text: str, finish: str, tokenizer: Any) -> tuple[int, ...]:
    end = tokenizer.end_ids
    if given is None:
        ids = tokenizer.encode(text)
        ids = [*ids, end[0]] if finish == "eos" and end else ids
        if not ids:
            raise ValueError(f"node {id} is empty, and was not ended by an end token either")
        return tuple(map(int, ids))
    if (
        not isinstance(given, list)
        or not given
        or not all(type(i) is int and 0 <= i < 1 << 31 for i in given)
    ):
        raise ValueError(f"token_ids of node {id} are not a list of token ids")
    if finish == "eos" and end and given[-1] not in end:
        raise ValueError(
            f"token_ids of node {id} do not end with an end token, which its finish `eos` says; "
            "append it, or give `finish`: stop"
        )
    said = read_completion(given, finish, tokenizer, tokenizer.thoughts)
    if (said.thought or "") + said.text != text:
        raise ValueError(
            f"token_ids of node {id} are not its completion to this model's tokenizer; leave "
            "`token_ids` and `logprobs` out to have the text encoded"
        )
    return tuple(given)


def _logprobs(id: str, given: Mapping[str, Any], tokens: int) -> tuple[float, ...]:
    found = given.get("logprobs")
    if not found:
        return ()
    if "token_ids" not in given or not isinstance(found, list) or len(found) != tokens:
        raise ValueError(f"logprobs of node {id} are not one for each of its token_ids")
    # A NaN fails the comparison as well; rounding may leave a certain token just above 0.
    if not all(type(p) in (int, float) and -1e9 < p < 1e-3 for p in found):
        raise ValueError(f"logprobs of node {id} hold what is no log-probability")
    return tuple(found)


def graded(
    trees: Sequence[Tree],
    records: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    grader: Grader,
) -> Forest:
    """The trees with answers graded; the `reward` that a record gives to a leaf is kept instead."""
    forest = grade(Forest(trees), questions, grader)
    kept = []
    for tree, record in zip(forest.trees, records, strict=True):
        prefix = f"{record.get('question_id', tree.question_id)}/"
        rewards = {
            f"{tree.question_id}/{node['id'].removeprefix(prefix)}": node["reward"]
            for node in record["nodes"]
            if node.get("reward") is not None
        }
        leaves = {leaf.id for leaf in tree.leaves}
        for id, reward in rewards.items():
            if type(reward) not in (int, float) or not 0 <= reward <= 1 or id not in leaves:
                raise ValueError(f"the reward of node {id} is {show(reward)}: no leaf's in [0, 1]")
        nodes = tuple(
            replace(node, reward=float(rewards[node.id])) if node.id in rewards else node
            for node in tree.nodes
        )
        kept.append(replace(tree, nodes=nodes))
    return Forest(kept)
