"""The one record of the method: a node is one sampled completion, a tree is one question's nodes.

The sampler's completions become nodes, grading and value iteration fill in what is known about
them, a search shard holds one tree per line, and role data is selected from the same nodes.
"""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

LOGPROB_DIGITS = 5
"""Decimals of a log-probability: about float32's own precision for values near -10."""
VALUE_DIGITS = 6
"""Decimals of a value. Both are rounded when a node is made, so that writing and reading a tree
gives the same nodes."""
EQUAL = 2 * 10.0**-VALUE_DIGITS
"""Values, and differences of values, that are nearer to each other than this are equal: each of
them was rounded."""
WIDEST = 2
"""Siblings of a prefix of a ragged tree, at most so many times the role's `branch`."""


@dataclass(frozen=True)
class Node:
    """One completion that a role sampled, and where it is in its question's tree."""

    id: str
    """The path from the root, for example `Q17/g2/v0`: the first critique of the third draft."""
    role: str
    parent: str | None
    """Id of the node it continues; None for a draft, which continues the question."""
    prompt: str
    prompt_ids: tuple[int, ...]
    """Token ids of the prompt, chat template applied."""
    cut: int
    """Tokens that were cut from the prompt to fit the context."""
    completion: str
    """The completion as text, without its end token and without its thought."""
    token_ids: tuple[int, ...]
    """The tokens as sampled, end token included; training uses these and never the text."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the sampling policy at temperature 1, unfiltered."""
    finish: str
    """Why the completion ended: `eos`, `stop` or `length`."""
    parsed: str | None = None
    """The answer read from the completion; None if there is none or the role does not answer."""
    correct: bool | None = None
    """Whether `parsed` is right; None for a role that does not answer."""
    value: float = math.nan
    """V(node) in [0, 1], set by value iteration."""
    label: bool = False
    """Whether the value is above the threshold. Which nodes become examples, `credit.selection`
    says."""
    reward: float | None = None
    """Outcome reward in [0, 1] of a leaf; None for every other node."""
    thought: str | None = None
    """What a thinking model wrote before the answer, with the tokens around it as text; `thought`
    and `completion` are the whole text of `token_ids`."""
    unclosed: bool = False
    """The completion ended within its thought: it is empty, and no answer."""

    @property
    def ended(self) -> bool:
        """Whether it came to its end, neither cut at its limit nor within its thought."""
        return self.finish != "length" and not self.unclosed

    @property
    def full_text(self) -> str:
        """Everything that was sampled, without the end token."""
        return (self.thought or "") + self.completion

    def to_record(self) -> dict[str, Any]:
        """The node as a JSON object; only leaves have a `reward`, only thinkers a `thought`."""
        record = {name: getattr(self, name) for name in _NODE_FIELDS}
        for name in ("prompt_ids", "token_ids", "logprobs"):
            record[name] = list(record[name])
        if self.reward is not None:
            whole = int(self.reward) == self.reward
            record["reward"] = int(self.reward) if whole else self.reward
        if self.thought is not None:
            record |= {"thought": self.thought, "unclosed": self.unclosed}
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Node:
        """The node of a JSON object; raises ValueError for one that `to_record` cannot give."""
        _check_types(record, _NODE_TYPES, "node")
        reward = record.get("reward")
        if reward is not None and not (_is_number(reward) and 0 <= reward <= 1):
            raise ValueError(f"the reward of node {record['id']!r} is {reward!r}, not in [0, 1]")
        fields = {name: record[name] for name in _NODE_FIELDS}
        for name in ("prompt_ids", "token_ids", "logprobs"):
            numbers = fields[name] = tuple(record[name])
            # Ids must be integers; a log-probability may be written as one, for example 0.
            whole = name != "logprobs"
            if not all(_is_number(n) and (not whole or isinstance(n, int)) for n in numbers):
                raise ValueError(f"{name} of node {record['id']!r} holds more than numbers")
        thought, unclosed = record.get("thought"), record.get("unclosed", False)
        if not isinstance(thought, str | None) or not isinstance(unclosed, bool):
            raise ValueError(f"the thought of node {record['id']!r} is no text")
        return cls(
            **fields,
            reward=None if reward is None else float(reward),
            thought=thought,
            unclosed=unclosed,
        )


@dataclass(frozen=True)
class Tree:
    """All nodes of one question, level by level: n drafts, then n^2 critiques, then n^3 answers."""

    question_id: str
    question: str
    answer: str
    """The reference answer."""
    meta: Mapping[str, Any]
    """What the task knows about the question besides its text."""
    branches: tuple[int, ...]
    """Completions per prefix, by depth."""
    roles: tuple[str, ...]
    """The role of each depth."""
    nodes: tuple[Node, ...]
    ragged: bool = False
    """Grown by adaptive branching: prefixes have different numbers of siblings, and `branches` are
    their means over the prefixes of a block of questions."""

    @property
    def leaves(self) -> tuple[Node, ...]:
        """The last role's nodes, which carry the rewards."""
        return self.levels[-1]

    @property
    def mean_reward(self) -> float:
        """The mean reward of its leaves, which is the value of the question under `mean`."""
        return self.mean(self.leaves, [leaf.reward or 0.0 for leaf in self.leaves])

    @cached_property
    def levels(self) -> tuple[tuple[Node, ...], ...]:
        """The nodes by depth, the drafts first."""
        if self.ragged:
            sizes = Counter(len(path) for path in self.paths.values())
            ends = list(accumulate(sizes[depth + 1] for depth in range(len(self.branches))))
        else:
            ends = list(accumulate(accumulate(self.branches, operator.mul)))
        # Nodes are listed level by level.
        return tuple(self.nodes[a:b] for a, b in pairwise([0, *ends]))

    @cached_property
    def paths(self) -> dict[str, tuple[int, ...]]:
        """By node id, which of its siblings each turn is on the path down to the node."""
        found: dict[str | None, tuple[int, ...]] = {None: ()}
        for parent, siblings in self.children.items():  # parents come before their children
            for index, node in enumerate(siblings):
                found[node.id] = (*found[parent], index)
        return {node.id: found[node.id] for node in self.nodes}

    @cached_property
    def weights(self) -> dict[str | None, float]:
        """By node id, how much the node counts among all of its level: 1 in fixed trees.

        In a ragged tree a node weighs the product of (branch / number of siblings) along its path.
        Siblings thus weigh alike, every prefix has the same total weight, and a question with more
        nodes does not count for more.
        """
        found: dict[str | None, float] = {None: 1.0}
        for parent, siblings in self.children.items():  # parents come before their children
            branch = self.branches[self.roles.index(siblings[0].role)]
            for node in siblings:
                found[node.id] = found[parent] * branch / len(siblings)
        return found

    def mean(self, nodes: Sequence[Node], numbers: Sequence[float]) -> float:
        """The mean of one number per node of a level, each counting as the value of the root does.

        In fixed trees all count alike.
        """
        weights = [self.weights[node.id] for node in nodes]
        return sum(w * x for w, x in zip(weights, numbers, strict=True)) / sum(weights)

    # Cached in `__dict__`, which a frozen dataclass does not protect.
    @cached_property
    def children(self) -> dict[str | None, list[Node]]:
        """Nodes by the id of their parent; the drafts' parent is None."""
        families: dict[str | None, list[Node]] = defaultdict(list)
        for node in self.nodes:
            families[node.parent].append(node)
        return families

    def to_record(self) -> dict[str, Any]:
        """The tree as one line of a search shard; only a ragged one has `ragged`."""
        record: dict[str, Any] = {
            "question_id": self.question_id,
            "question": self.question,
            "answer": self.answer,
            "meta": dict(self.meta),
            "branches": list(self.branches),
            "roles": list(self.roles),
            "nodes": [node.to_record() for node in self.nodes],
        }
        return record | ({"ragged": True} if self.ragged else {})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Tree:
        """The tree of a shard's line; raises ValueError for one that `to_record` cannot give.

        A shard may have been written by somebody else, so shape, parents and rewards are checked.
        """
        _check_types(record, _TREE_TYPES, "tree")
        tree = cls(
            record["question_id"],
            record["question"],
            record["answer"],
            record["meta"],
            tuple(record["branches"]),
            tuple(record["roles"]),
            tuple(map(Node.from_record, record["nodes"])),
            is_ragged(record),
        )
        _check_shape(tree)
        return tree


@dataclass(frozen=True)
class Forest:
    """Several trees of the same chain, as records and as arrays.

    The arrays of a level have the shape `[Q, b_1, ..., b_d]`. Of ragged trees, b is the largest
    number of siblings at each depth, and what is absent is NaN.
    """

    trees: Sequence[Tree] = field(default_factory=tuple)

    @property
    def branches(self) -> tuple[int, ...]:
        return self.trees[0].branches if self.trees else ()

    @property
    def roles(self) -> tuple[str, ...]:
        return self.trees[0].roles if self.trees else ()

    @property
    def ragged(self) -> bool:
        """Whether prefixes may have different numbers of siblings, by adaptive branching."""
        return any(tree.ragged for tree in self.trees)

    @property
    def rewards(self) -> Float[Array, "Q *branches"]:
        """Rewards of the leaves."""
        rewards = [leaf.reward for tree in self.trees for leaf in tree.leaves]
        return jnp.asarray(self._placed(len(self.branches), np.array(rewards, np.float32)))

    @property
    def values(self) -> list[Float[Array, "Q *_"]]:
        """Values by level, the root's children first, the leaves last."""
        levels = [[node.value for node in self._level(d)] for d in range(len(self.branches))]
        return [
            jnp.asarray(self._placed(depth, np.array(values, np.float32)))
            for depth, values in enumerate(levels, start=1)
        ]

    def tokens(self, level: int) -> Int[np.ndarray, "Q *_ T"]:
        """Token ids of a level's completions, end tokens included, padded with -1."""
        rows = _padded([node.token_ids for node in self._level(level)], np.int32(-1))
        return self._placed(level % len(self.branches) + 1, rows, -1)

    def logprobs(self, level: int) -> Float[np.ndarray, "Q *_ T"]:
        """Log-probabilities of a level's tokens under the sampling policy, padded with 0."""
        rows = _padded([node.logprobs for node in self._level(level)], np.float32(0))
        return self._placed(level % len(self.branches) + 1, rows, 0)

    def by_tree(self, levels: Sequence[Any]) -> list[np.ndarray]:
        """The numbers of each tree's nodes in their order, from arrays of the first levels."""
        arrays, depth = [np.asarray(level) for level in levels], len(levels)
        if not self.ragged:
            flat = [array.reshape(len(self.trees), -1) for array in arrays]
            return list(np.concatenate([np.empty((len(self.trees), 0)), *flat], axis=1))
        return [
            np.array([arrays[len(p) - 1][q, *p] for p in tree.paths.values() if len(p) <= depth])
            for q, tree in enumerate(self.trees)
        ]

    def _level(self, level: int) -> list[Node]:
        """The nodes of a level, tree after tree."""
        return [node for tree in self.trees for node in tree.levels[level]]

    def _placed(self, depth: int, rows: np.ndarray, absent: float = math.nan) -> np.ndarray:
        """One row per node of a depth as an array `[Q, b_1, ..., b_depth, ...]`."""
        if not self.ragged:
            return rows.reshape(len(self.trees), *self.branches[:depth], *rows.shape[1:])
        widths = [max(self._places(d)[d], default=-1) + 1 for d in range(1, depth + 1)]
        placed = np.full((len(self.trees), *widths, *rows.shape[1:]), absent, rows.dtype)
        placed[self._places(depth)] = rows
        return placed

    def _places(self, depth: int) -> tuple[np.ndarray, ...]:
        """Where a ragged forest's nodes of a depth are in its array, an index for each axis."""
        paths = [
            (number, *tree.paths[node.id])
            for number, tree in enumerate(self.trees)
            for node in tree.levels[depth - 1]
        ]
        return tuple(np.array(paths, int).reshape(-1, depth + 1).T)


def _padded(rows: list[tuple], pad: np.generic) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows), default=0)), pad, pad.dtype)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


_NODE_TYPES: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "role": str,
    "parent": (str, type(None)),
    "prompt": str,
    "prompt_ids": list,
    "cut": int,
    "completion": str,
    "token_ids": list,
    "logprobs": list,
    "finish": str,
    "parsed": (str, type(None)),
    "correct": (bool, type(None)),
    "value": (int, float),
    "label": bool,
}
"""What every node's record holds, in the order it is written."""
_NODE_FIELDS = tuple(_NODE_TYPES)
_TREE_TYPES: dict[str, type | tuple[type, ...]] = {
    "question_id": str,
    "question": str,
    "answer": str,
    "meta": dict,
    "branches": list,
    "roles": list,
    "nodes": list,
}


def is_ragged(record: Mapping[str, Any]) -> bool:
    """The optional field `ragged` of a tree's record; raises ValueError if it is no bool."""
    found = record.get("ragged", False)
    if not isinstance(found, bool):
        raise ValueError(f"'ragged' of a tree is {found!r}, not true or false")
    return found


def _check_types(record: Any, types: Mapping[str, Any], what: str) -> None:
    if not isinstance(record, Mapping):
        raise ValueError(f"a {what} is not a JSON object")
    for name, kind in types.items():
        if name not in record:
            raise ValueError(f"a {what} has no {name!r}")
        if not isinstance(record[name], kind):
            raise ValueError(f"{name!r} of a {what} has the wrong type")


def _check_shape(tree: Tree) -> None:
    """Raises ValueError unless nodes are listed level by level and only leaves have rewards."""
    # The bound keeps a forged record from making the lists below very long.
    whole = all(isinstance(b, int) and 1 <= b <= 64 for b in tree.branches)
    if not whole or not 1 <= len(tree.branches) == len(tree.roles):
        raise ValueError(f"tree {tree.question_id!r} has malformed 'branches' or 'roles'")
    parents: list[str | None] = [None]
    first = 0
    for depth, (branch, role) in enumerate(zip(tree.branches, tree.roles, strict=True)):
        counts = [len(tree.children.get(p, ())) if tree.ragged else branch for p in parents]
        level = tree.nodes[first : first + sum(counts)]
        expected = [parent for parent, n in zip(parents, counts, strict=True) for _ in range(n)]
        if [node.parent for node in level] != expected or any(n.role != role for n in level):
            raise ValueError(f"tree {tree.question_id!r} lacks nodes or has misplaced ones")
        if not 1 <= min(counts) <= max(counts) <= WIDEST * branch:
            raise ValueError(
                f"tree {tree.question_id!r} has a prefix with too few or many siblings"
            )
        leaf = depth == len(tree.branches) - 1
        if any((node.reward is not None) != leaf for node in level):
            raise ValueError(f"tree {tree.question_id!r} lacks a leaf's reward or has another's")
        parents = [node.id for node in level]
        first += len(level)
    if first != len(tree.nodes) or len({node.id for node in tree.nodes}) < first:
        raise ValueError(f"tree {tree.question_id!r} has nodes of one id, or too many of them")


def _is_number(value: Any) -> bool:
    # In Python a bool is an int; in a record `true` is no number.
    return isinstance(value, int | float) and not isinstance(value, bool)
