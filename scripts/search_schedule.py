"""Simulates how long a search takes by level and block, and without waiting for either.

    python scripts/search_schedule.py RUN                 # 7,473 questions on 1, 64 and 256 chips
    python scripts/search_schedule.py RUN --questions 600 --chips 1,8

Completions get lengths that a run directory holds: those of its trees, or of its evaluation's
turns. A simulated question takes the lengths of one question of the run, so that long drafts have
long siblings. A role whose lengths the run does not have takes those of the role before it.

The sampler's own scheduler decides what is computed when (`malt_jax/sampling/open_call.py` and what
it calls); only the device is replaced, by one that draws completions of these lengths. A prefill
call and a decode step cost what a kept plan says of the 8B model on v5p, with fewer rows the time
of reading the weights and, of the rest, the rows' share (`search_curve.py`); copies of shared
prefixes and the host's work cost nothing. Prints two Markdown rows per number of chips.

By level and block, a role's completions begin when all of the role before in their block have
ended (`search.streaming: false`). Streamed, the prompts that follow from a completion are added
when it ends, and a later block when the earlier ones no longer keep the rows busy (`true`).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from malt_jax.config.sampler import SamplerConfig
from malt_jax.planning.chips import CHIPS
from malt_jax.sampling import decode
from malt_jax.sampling.decode import IDLE, ChunkOutput, Rows
from malt_jax.sampling.memory import CacheShape, cache_shapes, first_shape
from malt_jax.sampling.open_call import OpenCall
from malt_jax.sampling.prefill import CopyCall, PrefillCall, PrefillShape
from malt_jax.sampling.request import Policy, Request, SamplingParams
from malt_jax.sampling.scheduler import Scheduler
from malt_jax.sampling.stats import Stats, Timer
from malt_jax.sampling.stream import Stream

PLAN = Path(__file__).parents[1] / "docs" / "results" / "plans" / "llama31_8b_gsm8k.json"
CHUNK = SamplerConfig().chunk_steps

refill = jax.jit(decode.refill)


class Cost(NamedTuple):
    """What the kept plan says of one chip: seconds, and the shapes they belong to."""

    rows: int
    weights: float  # seconds of reading the weights once
    step: float  # of a decode step with all rows
    lane: int  # tokens of a prefill chunk
    prefill: dict[int, float]  # seconds of each prefill call, by its chunks, which rise

    def decode(self, rows: int) -> float:
        return self.weights + (self.step - self.weights) * rows / self.rows


def planned_cost() -> Cost:
    plan = json.loads(PLAN.read_text())
    chips = plan["target"]["chips"]
    chip = CHIPS[plan["target"]["name"].partition(":")[0]]
    programs = {program["name"]: program for program in plan["programs"]}
    rows = int(programs["decode"]["shape"].split()[0].replace(",", "")) // chips
    calls = [program for name, program in programs.items() if name.startswith("prefill")]
    lane = int(calls[0]["shape"].split()[2])
    sizes = {int(p["shape"].split()[0]) // chips: p["seconds"] for p in calls}
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


class SimulatedDevice:
    """Takes the place of `sampling.device.Device`: adds up seconds, and draws nothing.

    A completion's key holds its length.
    """

    def __init__(self, shape: CacheShape, chips: int, cost: Cost):
        self.shape, self.chips, self.cost = shape, chips, cost
        self.prefill_seconds = self.decode_seconds = 0.0
        self.steps = 0

    def idle(self) -> bool:
        return False

    def resize(self, shape: CacheShape, entries: np.ndarray, rows: np.ndarray) -> None:
        self.shape = shape

    def prefill(self, call: CopyCall | PrefillCall) -> None:
        if isinstance(call, PrefillCall):
            self.prefill_seconds += self.cost.prefill[len(call.tokens) // self.chips]

    def decode(self, scheduler: Scheduler, idle_limit: int) -> None:
        queue, taken = scheduler.queue(), 0
        rows, dequeued = refill(scheduler.rows, queue, np.zeros(self.chips, np.int32))
        shape = CHUNK, self.shape.rows
        held = np.full(shape, IDLE, np.int32)
        while taken < CHUNK and np.sum(np.asarray(rows.completion) == IDLE) < idle_limit:
            completion, length = np.asarray(rows.completion), np.asarray(rows.length)
            busy, left = completion != IDLE, np.asarray(rows.key)[:, 0].astype(int) - length
            # All steps until some completion ends are alike.
            steps = min(CHUNK - taken, int(left[busy].min()))
            held[taken : taken + steps] = completion
            taken += steps
            ended = busy & (left == steps)
            length = np.where(busy & ~ended, length + steps, 0).astype(np.int32)
            completion = np.where(ended, np.int32(IDLE), completion)
            rows, dequeued = refill(
                rows._replace(completion=completion, length=length), queue, dequeued
            )
        self.steps += taken
        self.decode_seconds += taken * self.cost.decode(self.shape.rows // self.chips)
        tokens, logprobs = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        self._result = (
            rows,
            ChunkOutput(held, tokens, logprobs, np.int32(taken), np.asarray(dequeued), np.False_),
        )

    def result(self) -> tuple[Rows, ChunkOutput]:
        return self._result


class SimulatedSampler:
    """Takes the place of `Sampler` in an open call."""

    def __init__(self, chips: int, cost: Cost):
        self.streams, self.context, self.stats = 1, nullcontext, Stats()
        self.chips, self.cost = chips, cost
        self.devices: list[SimulatedDevice] = []

    def check(self, requests: Any, params: Any) -> None:
        pass

    def in_model_dtype(self, adapter: None) -> None:
        return adapter

    def plan(self, prompt_tokens: int, new_tokens: int, siblings: int) -> Any:
        one = CacheShape(1, 1, siblings, prompt_tokens, new_tokens)
        return cache_shapes(one, self.cost.rows, self.chips), None

    def stream(self, requests: Any, params: Any, adapter: None, plan: Any, apart: bool) -> Stream:
        shapes, _ = plan
        shape = first_shape(shapes, sum(len(request.keys) for request in requests))
        self.devices.append(device := SimulatedDevice(shape, self.chips, self.cost))
        calls = PrefillShape(self.cost.lane, tuple(n * self.chips for n in self.cost.prefill))
        scheduler = Scheduler(requests, params, shape, self.chips, apart)
        nothing = lambda: None  # noqa: E731
        return Stream(
            scheduler, device, shapes, calls, self.stats, Timer(self.stats), None, nothing
        )


@dataclass(frozen=True)
class Search:
    """The requests of a search whose completions have known lengths."""

    trees: list[np.ndarray]
    block: int  # questions of a block
    prompt: int  # tokens of template and question

    def request(self, level: int, path: tuple[int, ...]) -> Request:
        """For the completions that follow from `path`: a question, a draft, a critique.

        Tokens only need to differ where prompts do, and the last one is none of the entry's.
        """
        question = path[0]
        tokens = [question * len(self.trees) + level] * self.prompt
        for turn in range(1, len(path)):
            tokens += [path[turn]] * int(self.trees[turn - 1][path[: turn + 1]])
        lengths = self.trees[level][path]
        keys = np.stack([lengths, lengths], axis=1).astype(np.uint32)
        order = (question // self.block, level)
        return Request((*tokens, 0), keys, order=order, tag=(level, path))

    def requests(self, level: int, block: int) -> Iterator[Request]:
        for path in np.ndindex(self.trees[level].shape[:-1]):
            if path[0] // self.block == block:
                yield self.request(level, path)

    def run(self, sampler: Any, streamed: bool) -> None:
        """As `tree/streaming.py` does, or with a call for each level of each block."""
        blocks = range(-(-len(self.trees[0]) // self.block))
        if streamed:
            self._call(sampler, [(0, block) for block in blocks], follows=True)
            return
        for block in blocks:
            for level in range(len(self.trees)):
                self._call(sampler, [(level, block)], follows=False)

    def _call(self, sampler: Any, parts: list[tuple[int, int]], follows: bool) -> None:
        longest = self.prompt + sum(int(lengths.max()) for lengths in self.trees[:-1]) + 1
        params = SamplingParams(max_new_tokens=max(int(lengths.max()) for lengths in self.trees))
        waiting = deque(parts)
        with OpenCall(sampler, [Policy(params)], longest, self.trees[0].shape[1]) as call:
            while waiting or call.busy:
                while waiting and call.hungry:
                    call.add(self.requests(*waiting.popleft()))
                for ended in call.step():
                    level, path = ended.request.tag
                    if follows and level + 1 < len(self.trees):
                        follow = self.request(level + 1, (*path, ended.sibling))
                        call.add([follow], ended.place)


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
            sampler = SimulatedSampler(chips, cost)
            Search(trees, options.block, options.prompt).run(sampler, name == "streamed")
            stats, devices = sampler.stats, sampler.devices
            assert stats.tokens_generated == sum(int(x.sum()) for x in trees)
            prefill = sum(device.prefill_seconds for device in devices)
            total = prefill + sum(device.decode_seconds for device in devices)
            saved = f"{1 - total / before:.0%}" if before else ""
            before = total
            print(
                f"| {chips} | {name} | {sum(device.steps for device in devices):,} "
                f"| {stats.padding_waste:.0%} | {prefill / 60:.2f} | {total / 60:.2f} | {saved} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
