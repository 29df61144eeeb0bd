"""Slices: the parts of one search that runs of their own made with `search.shard`.

A slice may come from anybody, and its seal only says that it is intact. So everything of it that
the joined run will use is checked here, and what is malformed is refused with the slice's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.config.run import with_defaults
from malt_jax.errors import UserError
from malt_jax.regular_files import read_bytes
from malt_jax.sampling.stats import Stats
from malt_jax.stages.names import search_stage
from malt_jax.stages.session import Session
from malt_jax.storage import manifest, mirror
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir, differences
from malt_jax.tree.node import Tree

if TYPE_CHECKING:
    from malt_jax.tasks.base import Question
    from malt_jax.tree.roles import Chain

MAY_DIFFER = CANNOT_CHANGE_RESULTS | {
    "search.shard",
    "task.num_eval",
    "task.eval_path",
    "data",
    "train",
    "eval",
    "export",
    "ablations",
    "rounds",
    "sharing",
}
"""Fields that no tree depends on, so a slice may differ in them from the run that it joins."""
MAY_DIFFER_IN_ROLES = ("train", "training", "verdict")
"""The same of each role: how it learns, and which of its texts are read as verdicts."""
ROUND = 0
"""The round of all slices: later ones sample with adapters that only the joined run has."""
STAGE = search_stage(ROUND)
TREES = Path("rounds", f"{ROUND:03d}", "trees")
COST = Path("cost", f"{STAGE.replace('/', '-')}.json")
"""The file in which a run keeps what its search cost."""
MAX_TOKEN = 1 << 31
MAX_COST = 1e18


@dataclass(frozen=True)
class Slice:
    """A finished slice: the `index`-th of `count` ranges of the questions."""

    place: str
    """The run directory or mirror, as the user gave it."""
    run: RunDir
    index: int
    count: int

    @property
    def units(self) -> list[Path]:
        return manifest.sealed_units(self.run, STAGE)

    @property
    def shards(self) -> list[Path]:
        """Its files of trees, in the order of their questions."""
        return sorted(path for path in self.units if path.suffix == ".jsonl")


def open_slice(session: Session, place: str, fetched: Path) -> Slice:
    """The slice in a run directory, or in the mirror of one, which is copied to `fetched`."""
    mirrored = "://" in place
    if mirrored and not mirror.pull(place, fetched):
        raise UserError(f"{place}: no run is mirrored there: it has no {manifest.NAME}.")
    with named(place):
        run = RunDir.existing(fetched if mirrored else place)
        config = with_defaults(run.config)
    roles = range(len(session.pipeline.roles))
    of_roles = {f"pipeline.roles.{at}.{field}" for at in roles for field in MAY_DIFFER_IN_ROLES}
    if found := differences(config, with_defaults(session.run.config), MAY_DIFFER | of_roles):
        raise UserError(
            f"--join: {place} was searched with another config: {'; '.join(found)}. Give the "
            "config of its search, or search it again."
        )
    here, there = (manifest.load(one)["inputs"] for one in (session.run, run))
    # A path that only one of the two has read says nothing. The questions themselves are compared
    # in `check_trees`.
    changed = [path for path in here.keys() & there if here[path] != there[path]]
    if changed:
        raise UserError(
            f"--join: {place} has read other contents of {', '.join(sorted(changed))}; search "
            "it again with the file that is there now."
        )
    shard = config["search"]["shard"]
    if not manifest.stage_done(run, STAGE):
        raise UserError(
            f"--join: {place} (slice {shard}) has not finished its search; run `malt search` with "
            "its config again first."
        )
    index, count = map(int, shard.split("/"))
    return Slice(place, run, index, count)


def lacking(place: str) -> str:
    """What keeps a slice from being joined yet, for a line of progress; empty if it is finished."""
    if "://" in place:
        data = mirror.look(place)
    else:
        data = manifest.load(place) if Path(place, manifest.NAME).exists() else None
    if data is None:
        return "not begun"
    stage = data["stages"].get(STAGE, {"done": False, "units": []})
    return "" if stage["done"] else f"{len(stage['units'])} blocks so far"


@contextmanager
def named(place: str) -> Iterator[None]:
    """Names the slice in an error about its content, whose own path may be a temporary copy's."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--join: {place} cannot be used: {error}") from None


def check_files(one: Slice) -> None:
    """Refuses a damaged slice, and one whose sealed files are not those of a search."""
    with named(one.place):
        manifest.verify(one.run, one.units)
        prefix = "" if one.count == 1 else f"{one.index}of{one.count}-"
        shards = [TREES / f"{prefix}{number:05d}.jsonl" for number in range(len(one.shards))]
        expected = [one.run.path / file for file in (*shards, COST)]
        # Exactly these files: a slice can neither lack one nor bring one of its own along.
        if not shards or sorted(one.units) != sorted(expected):
            raise UserError(
                f"its search sealed {', '.join(unit.name for unit in one.units) or 'nothing'}, "
                f"and not {', '.join(path.name for path in expected)}; search the slice again."
            )
        read_cost(one)


def check_trees(session: Session, slices: Sequence[Slice]) -> None:
    """Refuses slices that do not hold one tree per question of this run, in their order."""
    # One iterator for all slices: together they give each question once, in order.
    questions = iter(session.train_questions)
    ragged = session.config.search.spare > 0
    for one in slices:
        with named(one.place):
            for path in one.shards:
                for line, record in enumerate(read_lines(path), start=1):
                    try:
                        tree = Tree.from_record(record)
                        _check_tree(tree, next(questions, None), session.pipeline, ragged)
                    except (ValueError, TypeError) as error:
                        reason = str(error).partition("\n")[0]
                        raise UserError(
                            f"{path.name}:{line}: {reason}. Search the slice again with this run's "
                            "config and questions."
                        ) from None
    if missing := next(questions, None):
        raise UserError(
            f"--join: {slices[-1].place} cannot be used: the tree of {missing.id} is missing; "
            "the slices were not cut from this run's questions."
        )


def _check_tree(tree: Tree, question: Question | None, pipeline: Chain, ragged: bool) -> None:
    """Raises ValueError for a tree that this run could not have grown for the question."""
    if question is None:
        raise ValueError(f"{tree.question_id} is a tree beyond this run's questions")
    wanted = question.id
    if tree.question_id != wanted:
        raise ValueError(f"expected the tree of {wanted}, found that of {tree.question_id}")
    if (tree.question, tree.answer) != (question.text, question.answer):
        raise ValueError(f"the text or the answer of {wanted} is not that of this run")
    shape = tuple(pipeline.branches), tuple(role.name for role in pipeline.roles), ragged
    if (tree.branches, tree.roles, tree.ragged) != shape:
        raise ValueError(f"the tree of {wanted} has other roles or branches than the pipeline")
    if len({node.id for node in tree.nodes}) < len(tree.nodes):
        raise ValueError(f"the tree of {wanted} has two nodes with the same id")
    for node in tree.nodes:
        # Packed rows hold token ids as int32.
        if not all(0 <= token < MAX_TOKEN for token in (*node.prompt_ids, *node.token_ids)):
            raise ValueError(f"node {node.id} holds a token id that no vocabulary has")
        # A NaN fails both comparisons below, so it is refused as infinity is.
        numbers = (node.value, node.reward or 0, *node.logprobs)
        if len(node.logprobs) != len(node.token_ids) or not all(
            -1e9 < number < 1e9 for number in numbers
        ):
            raise ValueError(f"node {node.id} lacks a log-probability or holds an infinite number")


def read_cost(one: Slice) -> dict[str, float]:
    """What the slice's search cost; raises UserError unless every figure is a number."""
    try:
        cost = json.loads(read_bytes(one.run.path / COST))
    except (ValueError, RecursionError):
        cost = None
    names = [*(field.name for field in fields(Stats)), "peak_bytes"]
    for name in names:
        figure = cost.get(name) if isinstance(cost, dict) else None
        is_number = isinstance(figure, int | float) and not isinstance(figure, bool)
        if figure is None or not is_number or not 0 <= figure < MAX_COST:
            raise UserError(f"{COST}: {name} is missing or not a number; search the slice again.")
    return {name: cost[name] for name in names}
