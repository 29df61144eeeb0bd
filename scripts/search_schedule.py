"""Simulates how long a search takes by level and block, and without waiting for either.

    python scripts/search_schedule.py RUN                 # 7,473 questions on 1, 64 and 256 chips
    python scripts/search_schedule.py RUN --questions 600 --chips 1,8

Completions get lengths that a run directory holds: those of its trees, or of its evaluation's
turns. A simulated question takes the lengths of one question of the run, so that long drafts have
long siblings. A role whose lengths the run does not have takes those of the role before it.

Every chip has rows and prefix cache entries of its own, and the rules are those of
`malt_jax/sampling/scheduler.py` and `stream.py`: prompts are admitted between two chunks of decode
steps, rows refill themselves within a chunk, the batch grows and shrinks with its completions, and
all chips take each step together. A step costs what a kept plan says of the 8B model on v5p, with
fewer rows the time of reading the weights and, of the rest, the rows' share (`search_curve.py`).
Prints two Markdown rows per number of chips.

By level and block, a role's completions begin when all of the role before in their block have
ended (`search.streaming: false`). Streamed, a completion's follow-ups become pending when it ends;
pending prompts of earlier blocks go first, then those of earlier roles (`true`).
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from malt_jax.planning.chips import CHIPS
from malt_jax.sampling.memory import CacheShape, entries_for, first_shape, row_counts

PLAN = Path(__file__).parents[1] / "docs" / "results" / "plans" / "llama31_8b_gsm8k.json"
CHUNK = 16
IDLE = -1


class Cost(NamedTuple):
    """What the kept plan says of one chip: seconds, and the shapes they belong to."""

    rows: int
    weights: float  # seconds of reading the weights once
    step: float  # of a decode step with all rows
    lane: int  # tokens of a prefill chunk
    calls: tuple[tuple[int, float], ...]  # (chunks, seconds) of each prefill call, rising

    def decode(self, rows: int) -> float:
        return self.weights + (self.step - self.weights) * rows / self.rows

    def prefill(self, chunks: int) -> float:
        """Of the calls that the chip with most chunks needs; the others wait for it."""
        (few, short), (many, long) = self.calls
        return chunks // many * long + -(-(chunks % many) // few) * short


def planned_cost() -> Cost:
    plan = json.loads(PLAN.read_text())
    chips = plan["target"]["chips"]
    chip = CHIPS[plan["target"]["name"].partition(":")[0]]
    programs = {program["name"]: program for program in plan["programs"]}
    rows = int(programs["decode"]["shape"].split()[0].replace(",", "")) // chips
    calls = [program for name, program in programs.items() if name.startswith("prefill")]
    lane = int(calls[0]["shape"].split()[2])
    sizes = tuple((int(p["shape"].split()[0]) // chips, p["seconds"]) for p in calls)
    weights = plan["model"]["bytes_per_chip"] / (chip.bandwidth or 1.0)
    return Cost(rows, weights, programs["decode"]["seconds"], lane, sizes)


def observed(run: Path) -> list[dict[str, list[int]]]:
    """Per question of the run, the lengths in tokens of each role's completions."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(run.glob("rounds/*/trees/*.jsonl")):
        for tree in map(json.loads, path.read_text().splitlines()):
            for node in tree["nodes"]:
                found[tree["question_id"]][node["role"]].append(len(node["token_ids"]))
    if not found:
        for path in sorted(run.glob("eval/*.jsonl")):
            for draw in map(json.loads, path.read_text().splitlines()):
                for turn in draw["turns"]:
                    found[draw["question_id"]][turn["role"]].append(turn["tokens"])
    if not found:
        raise SystemExit(f"{run} holds neither rounds/*/trees/*.jsonl nor eval/*.jsonl")
    return [dict(question) for question in found.values()]


def draw_trees(
    questions: list[dict[str, list[int]]], count: int, branch: int, depth: int
) -> list[np.ndarray]:
    """Lengths of the completions of each level, `[count, branch, ...]`."""
    rng = np.random.default_rng(0)
    names = list(max(questions, key=len))
    trees = [np.zeros((count, *[branch] * (level + 1)), int) for level in range(depth)]
    for number in range(count):
        own = questions[rng.integers(len(questions))]
        for level, lengths in enumerate(trees):
            known = [name for name in names[: level + 1] if name in own]
            lengths[number] = rng.choice(own[known[-1]], lengths.shape[1:])
    return trees


class Group(NamedTuple):
    """The siblings of one prompt. Groups sort by level, then in the order of their tokens."""

    block: int
    level: int
    path: tuple[int, ...]  # question, draft, critique, as many as its level has


@dataclass
class Pending:
    """Groups without an entry, per chip, each chip's in their order."""

    chips: int
    heaps: list[list[Group]] = field(default_factory=list)

    def __post_init__(self):
        self.heaps = [[] for _ in range(self.chips)]

    def add(self, chip: int, group: Group) -> None:
        heapq.heappush(self.heaps[chip], group)

    def take(self, chip: int) -> Group | None:
        """The chip's first group."""
        return heapq.heappop(self.heaps[chip]) if self.heaps[chip] else None

    def take_over(self) -> Group | None:
        """The last group of the chip that has most."""
        fullest = max(self.heaps, key=len)
        if not fullest:
            return None
        last = max(range(len(fullest)), key=fullest.__getitem__)
        group = fullest.pop(last)
        heapq.heapify(fullest)
        return group


class Simulation:
    """One run of the sampler on some chips, over the levels that it begins with and follows."""

    def __init__(self, trees, groups: Iterable[Group], chips: int, cost: Cost, prompt: int,
                 follows: bool):  # fmt: skip
        self.trees, self.chips, self.cost, self.prompt = trees, chips, cost, prompt
        self.follows, self.branch = follows, trees[0].shape[1]
        groups = sorted(groups)
        counts = row_counts(cost.rows * chips, chips)
        most = entries_for(cost.rows, self.branch) * chips
        self.shapes = [CacheShape(rows, min(rows, most), self.branch, 0, 0) for rows in counts]
        self.shape = first_shape(self.shapes, self.branch * len(groups))
        self.pending = Pending(chips)
        sizes, seen = Counter(group.block for group in groups), Counter[int]()
        for group in groups:
            self.pending.add(seen[group.block] * chips // sizes[group.block], group)
            seen[group.block] += 1
        rows = self.shape.rows // chips
        self.left = np.zeros((chips, rows), int)
        self.sibling = np.zeros((chips, rows), int)
        self.group = np.full((chips, rows), IDLE)
        """Number in `self.admitted` of the group that a row works on."""
        self.admitted: list[Group] = []
        self.readers: list[int] = []
        self.free = np.full(chips, self.shape.entries // chips)
        self.queues: list[deque[tuple[int, int]]] = [deque() for _ in range(chips)]
        self.held: list[Counter] = [Counter() for _ in range(chips)]
        """Per chip, in how many entries the keys of each part of a prompt are."""
        self.old: list[deque[Group]] = [deque() for _ in range(chips)]
        """Per chip, groups whose entries are free and still hold their prompts."""
        self.ended: list[tuple[int, int, int]] = []
        """(chip, group, sibling) since the last chunk."""
        self.seconds = self.prefill = 0.0
        self.steps = self.row_steps = self.tokens = self.computed = self.chunks = self.resized = 0

    def run(self) -> Simulation:
        while any(self.pending.heaps) or any(self.queues) or np.any(self.group != IDLE):
            self._grow()
            self._admit()
            self._shrink()
            self._decode()
            self._follow()
        return self

    def _admit(self) -> None:
        chunks = np.zeros(self.chips, int)
        load, rows = self._load(), self.shape.rows // self.chips

        def begin(chip: int, group: Group) -> None:
            self.free[chip] -= 1
            load[chip] += self.branch
            chunks[chip] += -(-self._computed(chip, group) // self.cost.lane)
            number = len(self.admitted)
            self.admitted.append(group)
            self.readers.append(self.branch)
            self.queues[chip] += [(number, sibling) for sibling in range(self.branch)]

        for chip in range(self.chips):
            while self.free[chip] and (group := self.pending.take(chip)):
                begin(chip, group)
        while any(self.pending.heaps):
            able = np.flatnonzero((self.free > 0) & (load < rows))
            if not len(able):
                break
            chip = int(able[np.argmin(load[able])])
            begin(chip, self.pending.take_over())
        self.seconds += (spent := self.cost.prefill(int(chunks.max())))
        self.prefill += spent

    def _computed(self, chip: int, group: Group) -> int:
        """Tokens of a prompt that no entry of the chip holds; the group takes a free entry."""
        held = self.held[chip]
        if len(self.old[chip]) > self.free[chip]:
            held.subtract(self._parts(self.old[chip].popleft()).keys())
        parts = self._parts(group)
        new = sum(tokens for part, tokens in parts.items() if held[part] <= 0)
        held.update(parts.keys())
        self.computed += new
        return new

    def _parts(self, group: Group) -> dict[tuple, int]:
        """The parts of a prompt and their tokens: template and question, then each turn."""
        question, *turns = group.path
        parts = {(group.level, question): self.prompt}
        for i in range(len(turns)):
            turn = tuple(turns[: i + 1])
            parts[group.level, question, *turn] = int(self.trees[i][(question, *turn)])
        return parts

    def _load(self) -> np.ndarray:
        """Active plus queued completions of each chip."""
        return np.sum(self.group != IDLE, axis=1) + [len(queue) for queue in self.queues]

    def _grow(self) -> None:
        waiting = self.branch * sum(map(len, self.pending.heaps)) + int(self._load().sum())
        shape = first_shape(self.shapes, waiting)
        if shape.rows <= self.shape.rows:
            return
        added = (shape.rows - self.shape.rows) // self.chips
        pad = ((0, 0), (0, added))
        self.left, self.sibling = np.pad(self.left, pad), np.pad(self.sibling, pad)
        self.group = np.pad(self.group, pad, constant_values=IDLE)
        self.free += (shape.entries - self.shape.entries) // self.chips
        self.shape = shape
        self.resized += 1

    def _shrink(self) -> None:
        if any(self.pending.heaps):
            return
        load = self._load()
        while (at := self.shapes.index(self.shape)) and np.all(
            load <= self.shapes[at - 1].rows // self.chips
        ):
            before, self.shape = self.shape, self.shapes[at - 1]
            order = np.argsort(self.group == IDLE, axis=1, kind="stable")
            order = order[:, : self.shape.rows // self.chips]
            self.left = np.take_along_axis(self.left, order, 1)
            self.group = np.take_along_axis(self.group, order, 1)
            self.sibling = np.take_along_axis(self.sibling, order, 1)
            self.free -= (before.entries - self.shape.entries) // self.chips
            self.resized += 1

    def _idle_limit(self) -> int:
        rows = self.shape.rows
        idle = int(np.maximum(0, rows // self.chips - self._load()).sum())
        some = min(rows, idle + max(1, rows // 16))
        at = self.shapes.index(self.shape)
        fewer = self.shapes[at - 1].rows if at else 0
        return some if any(self.pending.heaps) else max(some, rows - fewer)

    def _refill(self, rows: np.ndarray) -> None:
        for chip, row in rows.tolist():
            if self.queues[chip]:
                number, sibling = self.queues[chip].popleft()
                _, level, path = self.admitted[number]
                self.group[chip, row], self.sibling[chip, row] = number, sibling
                self.left[chip, row] = self.trees[level][(*path, sibling)]

    def _decode(self) -> None:
        limit, taken = self._idle_limit(), 0
        self._refill(np.argwhere(self.group == IDLE))
        while taken < CHUNK and (busy := self.group != IDLE).any():
            if self.group.size - np.count_nonzero(busy) >= limit:
                break
            # All steps until some completion ends are alike.
            steps = min(CHUNK - taken, int(self.left[busy].min()))
            taken += steps
            self.left[busy] -= steps
            self.tokens += steps * np.count_nonzero(busy)
            ended = np.argwhere(busy & (self.left == 0))
            for chip, row in ended.tolist():
                self.ended.append((chip, int(self.group[chip, row]), int(self.sibling[chip, row])))
            self.group[tuple(ended.T)] = IDLE
            self._refill(ended)
        self.steps += taken
        self.chunks += 1
        self.row_steps += taken * self.shape.rows
        self.seconds += taken * self.cost.decode(self.shape.rows // self.chips)

    def _follow(self) -> None:
        for chip, number, sibling in self.ended:
            self.readers[number] -= 1
            block, level, path = self.admitted[number]
            if not self.readers[number]:
                self.free[chip] += 1
                self.old[chip].append(self.admitted[number])
            if self.follows and level + 1 < len(self.trees):
                self.pending.add(chip, Group(block, level + 1, (*path, sibling)))
        self.ended.clear()


def all_groups(trees, level: int, size: int) -> Iterator[Group]:
    return (Group(path[0] // size, level, path) for path in np.ndindex(*trees[level].shape[:-1]))


def simulate(
    trees: list[np.ndarray], chips: int, cost: Cost, prompt: int, streamed: bool, size: int
) -> list[Simulation]:
    levels = [list(all_groups(trees, level, size)) for level in range(len(trees))]
    if streamed:
        parts = [levels[0]]
    else:
        blocks = range(-(-len(trees[0]) // size))
        parts = [[g for g in level if g.block == block] for block in blocks for level in levels]
    return [Simulation(trees, part, chips, cost, prompt, streamed).run() for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=7473)
    parser.add_argument("--chips", default="1,64,256")
    parser.add_argument("--block", type=int, default=2048)
    parser.add_argument("--prompt", type=int, default=192, help="tokens of template and question")
    options = parser.parse_args()
    cost = planned_cost()
    trees = draw_trees(observed(options.run), options.questions, branch=3, depth=3)
    means = ", ".join(f"{x.mean():.0f} (longest {x.max()})" for x in trees)
    print(f"mean length by level: {means}; {cost.rows} rows per chip\n")
    print("| chips | schedule | steps | idle rows | prefill minutes | minutes | saved |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for chips in map(int, options.chips.split(",")):
        before = 0.0
        for name in ("by level and block", "streamed"):
            streamed = name == "streamed"
            runs = simulate(trees, chips, cost, options.prompt, streamed, options.block)
            total = {k: sum(getattr(r, k) for r in runs)
                     for k in ("seconds", "prefill", "steps", "row_steps", "tokens")}  # fmt: skip
            assert total["tokens"] == sum(int(x.sum()) for x in trees)
            saved = 1 - total["seconds"] / before if before else 0.0
            before = before or total["seconds"]
            print(
                f"| {chips} | {name} | {total['steps']:,} "
                f"| {1 - total['tokens'] / total['row_steps']:.0%} "
                f"| {total['prefill'] / 60:.2f} | {total['seconds'] / 60:.2f} "
                f"| {f'{saved:.0%}' if streamed else ''} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
