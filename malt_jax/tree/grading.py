"""Outcome rewards: every answering turn is graded, and the leaves' grades are the rewards."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from malt_jax.tasks.base import NO_ANSWER, Grader, Question
from malt_jax.tree.node import Forest, Node, Tree


def grade(
    forest: Forest, questions: Sequence[Question], grader: Grader, known: Container[str] = ()
) -> Forest:
    """The forest with `parsed` and `correct` of the answering turns and the leaves' rewards set.

    The reward is the grader's: 1[T(text) = a*], where T reads the final answer of the text, unless
    it gives partial rewards. An answer that cannot be read has reward 0. Drafts are graded too: no
    value depends on it, but the single-agent baseline and the report do. `questions` are those of
    the trees, in their order. `expand` has marked the nodes of answering roles by `correct`. A
    thought that was never closed is no answer, whatever the grader would make of it. Nodes whose id
    is `known` have been graded and stay as they are.
    """
    graded = [
        (node, question)
        for tree, question in zip(forest.trees, questions, strict=True)
        for node in tree.nodes
        if node.correct is not None and not node.unclosed and node.id not in known
    ]
    grades = grader.grade([node.completion for node, _ in graded], [q for _, q in graded])
    by_id = {node.id: one for (node, _), one in zip(graded, grades, strict=True)}

    def with_grade(node: Node, leaf: bool) -> Node:
        if node.correct is None or node.id in known:
            return node
        one = by_id.get(node.id, NO_ANSWER)
        # Inner nodes get none: their values come from the leaves, and a shard that holds a reward
        # elsewhere is refused when it is read.
        reward = float(one.reward) if leaf else None
        return replace(node, parsed=one.parsed, correct=bool(one.correct), reward=reward)

    def with_grades(tree: Tree) -> Tree:
        last = tree.roles[-1]
        return replace(tree, nodes=tuple(with_grade(n, n.role == last) for n in tree.nodes))

    return Forest([with_grades(tree) for tree in forest.trees])
