"""Trees as JSONL records and as arrays: grading the leaves, backing values up, reading back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from malt_jax.config.search import SearchConfig
from malt_jax.tree.expand import Tree
from malt_jax.tree.roles import Pipeline
from malt_jax.tree.values import back_up, label

LOGPROB_DIGITS = 5
"""Decimals of stored log-probabilities: about float32's own precision for values near -10."""


@dataclass(frozen=True)
class Forest:
    """A pool of graded trees as arrays, with the records they are written as."""

    records: list[dict[str, Any]]
    rewards: Float[Array, "Q *branches"]
    values: list[Float[Array, "Q *_"]]
    """Per level, the root's children first."""

    def tokens(self, level: int) -> Int[np.ndarray, "Q *_ T"]:
        """A level's token ids, end tokens included, padded with -1."""
        return self._padded(level, "token_ids", np.full((), -1, np.int32))

    def logprobs(self, level: int) -> Float[np.ndarray, "Q *_ T"]:
        """A level's log-probabilities under the model itself, padded with 0."""
        return self._padded(level, "logprobs", np.zeros((), np.float32))

    def _padded(self, level: int, column: str, pad: np.ndarray) -> np.ndarray:
        shape = self.values[level].shape
        sizes = [int(np.prod(self.values[d].shape[1:])) for d in range(level + 1)]
        first, count = sum(sizes[:-1]), sizes[-1]
        rows = [n[column] for r in self.records for n in r["nodes"][first : first + count]]
        padded = np.full((len(rows), max(map(len, rows), default=0)), pad, pad.dtype)
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        return padded.reshape(*shape, -1)


def grade_trees(
    trees: Sequence[Tree], pipeline: Pipeline, grader: Any, search: SearchConfig
) -> Forest:
    """Grades every answering turn, rewards the leaves with 1[T(r) == a*], backs the values up.

    An answer that cannot be parsed has reward 0. Drafts are graded too (`correct`): no value
    depends on it, but the report and the single-agent baselines read it.
    """
    nodes = [
        (tree, depth, at)
        for tree in trees
        for depth, role in enumerate(pipeline.roles)
        if role.config.answers
        for at in range(len(tree.levels[depth]))
    ]
    texts = [tree.levels[depth][at].text for tree, depth, at in nodes]
    grades = grader.grade(texts, [tree.question for tree, _, _ in nodes])
    graded = {
        (id(tree), depth, at): grade for (tree, depth, at), grade in zip(nodes, grades, strict=True)
    }
    last = len(pipeline.roles) - 1
    rewards = np.array(
        [
            [float(graded[id(tree), last, at].correct) for at in range(len(tree.levels[last]))]
            for tree in trees
        ],
        np.float32,
    ).reshape(len(trees), *pipeline.branches)
    values = back_up(jnp.asarray(rewards), search.backup, search.softness)
    flat = [np.asarray(level).reshape(len(trees), -1) for level in values]
    positive = [np.asarray(label(jnp.asarray(level), search.threshold)) for level in flat]
    records = []
    for q, tree in enumerate(trees):
        rows = []
        for depth, role in enumerate(pipeline.roles):
            for at, node in enumerate(tree.levels[depth]):
                grade = graded.get((id(tree), depth, at))
                rows.append(
                    {
                        "id": pipeline.node_id(tree.question.id, node.path),
                        "role": role.name,
                        "parent": pipeline.node_id(tree.question.id, node.path[:-1])
                        if depth
                        else None,
                        "prompt": node.prompt.text,
                        "prompt_ids": [int(t) for t in node.prompt.ids],
                        "cut": node.prompt.cut,
                        "completion": node.text,
                        "token_ids": [int(t) for t in node.completion.tokens],
                        "logprobs": [
                            round(float(p), LOGPROB_DIGITS) for p in node.completion.logprobs
                        ],
                        "finish": node.completion.finish,
                        "parsed": grade.parsed if grade else None,
                        "correct": bool(grade.correct) if grade else None,
                        "value": round(float(flat[depth][q, at]), 6),
                        "label": bool(positive[depth][q, at]),
                    }
                )
                if depth == last:
                    rows[-1]["reward"] = int(rewards[q].reshape(-1)[at])
        records.append(
            {
                "question_id": tree.question.id,
                "question": tree.question.text,
                "answer": tree.question.answer,
                "meta": tree.question.meta,
                "branches": list(pipeline.branches),
                "roles": [role.name for role in pipeline.roles],
                "nodes": rows,
            }
        )
    return Forest(records, jnp.asarray(rewards), values)


def relabel(record: dict[str, Any], search: SearchConfig) -> dict[str, Any]:
    """The record with values and labels under another backup or threshold; nothing is resampled."""
    rewards = [node["reward"] for node in record["nodes"] if "reward" in node]
    array = jnp.asarray(np.array(rewards, np.float32).reshape(1, *record["branches"]))
    levels = back_up(array, search.backup, search.softness)
    values = np.concatenate([np.asarray(level).reshape(-1) for level in levels])
    labels = np.asarray(label(jnp.asarray(values), search.threshold))
    nodes = [
        {**node, "value": round(float(value), 6), "label": bool(positive)}
        for node, value, positive in zip(record["nodes"], values, labels, strict=True)
    ]
    return {**record, "nodes": nodes}
