"""The scheduler on the host alone: what is computed, what is shared, which rows idle."""

from __future__ import annotations

from itertools import pairwise

import jax
import numpy as np
import pytest

from malt_jax.config.sampler import SamplerConfig
from malt_jax.errors import UserError
from malt_jax.models.spec import ModelSpec, Rope
from malt_jax.sampling.decode import IDLE, ChunkOutput, Rows
from malt_jax.sampling.memory import (
    CacheShape,
    Devices,
    cache_shapes,
    plan_memory,
    plan_shapes,
    row_counts,
    siblings_per_entry,
    token_bytes,
)
from malt_jax.sampling.prefill import CopyCall, PrefillCall, PrefillShape, plan_calls
from malt_jax.sampling.request import Request, SamplingParams
from malt_jax.sampling.sampler import Sampler
from malt_jax.sampling.scheduler import Scheduler

END = 1


class Device:
    """Stands in for the device: checks every read of a prefix, decodes to given lengths."""

    def __init__(self, shape: CacheShape, shards: int):
        self.held, self.shards = np.full((shape.entries, shape.prefix_tokens), -1), shards
        self.siblings = shape.siblings
        self.computed = 0

    def prefill(self, call: CopyCall | PrefillCall) -> None:
        copies = isinstance(call, CopyCall)
        targets, entries = (call if copies else call.chunks).target, len(self.held)
        for place, target in enumerate(targets):
            if target < entries:  # a shard sees its own chunks and its own entries alone
                shard = place * self.shards // len(targets)
                numbers = (target, call.source[place]) if copies else (target,)
                assert all(number * self.shards // entries == shard for number in numbers)
        if copies:
            read = self.held[call.source].copy()
            for place, target in enumerate(targets):
                if target < entries:
                    self.held[target] = read[place]
            return
        used = [i for i, target in enumerate(targets) if target < entries]
        for i in used:
            entry, start, length = targets[i], call.chunks.start[i], call.chunks.length[i]
            self.held[entry, start : start + length] = call.tokens[i, :length]
            self.held[entry, start + length :] = -1
            self.computed += int(length)
        assert all(np.all(self.held[targets[i], : call.chunks.start[i]] >= 0) for i in used)

    def decode(
        self, scheduler: Scheduler, lengths, chunk: int, idle_limit: int
    ) -> tuple[Rows, ChunkOutput]:
        """`lengths[request][sibling]` tokens per completion; what `decode.decode` does."""
        rows, queue = jax.tree.map(np.copy, scheduler.rows), scheduler.queue()
        count, own = len(rows.completion), len(rows.completion) // self.shards
        depth = queue.completion.shape[1]
        dequeued = np.zeros(self.shards, int)

        def refill() -> None:
            for row in np.flatnonzero(rows.completion == IDLE):
                first = row // own, dequeued[row // own]
                if first[1] < depth and queue.completion[first] != IDLE:
                    dequeued[row // own] += 1
                    for values, queued in zip(rows, queue, strict=True):
                        if values is not None:  # no role thinks here
                            values[row] = queued[first]
            busy = np.flatnonzero(rows.completion != IDLE)
            assert np.all(rows.entry[busy] * self.shards // len(self.held) == busy // own)
            assert np.bincount(rows.entry[busy], minlength=1).max() <= self.siblings

        shape = (chunk, count)
        output = [np.full(shape, IDLE), np.zeros(shape, int), np.zeros(shape)]
        refill()
        step = 0
        while step < chunk and (rows.completion == IDLE).sum() < idle_limit:
            output[0][step] = rows.completion
            for row in np.flatnonzero(rows.completion != IDLE):
                completion = scheduler.completions[rows.completion[row]]
                request = scheduler.requests[completion.request]
                held = self.held[rows.entry[row], : rows.prefix[row]]
                assert (*held, *request.prompt[-1:]) == request.prompt
                assert tuple(rows.key[row]) == tuple(request.keys[completion.sibling])
                rows.length[row] += 1
                output[1][step, row] = 7
                if rows.length[row] == lengths[completion.request][completion.sibling]:
                    output[1][step, row] = END
                    rows.length[row], rows.completion[row] = 0, IDLE
            refill()
            step += 1
        finite = np.bool_(False)
        return rows, ChunkOutput(*output, np.int32(step), dequeued, not_finite=finite)


def simulate(
    requests, lengths, rows, siblings=3, chunk=16, prefill=(16, 256), prefix_tokens=1024, shards=1
):
    """Runs a scheduler to its end; returns (prefill tokens, row-steps, useful row-steps)."""
    params = SamplingParams(max_new_tokens=1000, end_ids=(END,))
    shapes = cache_shapes(CacheShape(1, 1, siblings, prefix_tokens, 1000), rows // shards, shards)
    shape = shapes.pop()
    scheduler = Scheduler(requests, params, shape, shards)
    device, steps = Device(shape, shards), 0
    calls = PrefillShape.of(*prefill, shards)
    while not scheduler.finished:
        for call in plan_calls(scheduler.admit(), shape.entries, calls, shards):
            device.prefill(call)
        while shapes and scheduler.fits(shapes[-1].rows):
            shape = shapes.pop()
            device.held = device.held[scheduler.resize(shape)[0]]
        idle_limit = scheduler.idle_limit(shapes[-1].rows if shapes else 0)
        drawn, output = device.decode(scheduler, lengths, chunk, idle_limit)
        assert output.steps
        steps += int(output.steps) * shape.rows
        scheduler.process_output(drawn, output)
    for completions, wanted in zip(scheduler.results(), lengths, strict=True):
        assert [len(c.tokens) for c in completions] == list(wanted)
        assert all(c.finish == "eos" for c in completions)
    return device.computed, steps, scheduler.useful_steps


def some_keys(rng, n):
    return rng.integers(0, 2**32, (n, 2), dtype=np.uint32)


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_a_tree_of_three_roles_computes_every_shared_prefix_once(rows):
    """200-token questions, 400-token turns, n = 3: at most 7,500 tokens a question, not 33,000."""
    rng, n, questions = np.random.default_rng(0), 3, 4
    text = lambda count: tuple(rng.integers(2, 1000, count).tolist())  # noqa: E731
    paths = [text(200) for _ in range(questions)]
    computed = naive = 0
    for _ in range(3):
        requests = [Request(path, some_keys(rng, n)) for path in paths]
        lengths = [rng.integers(1, 60, n).tolist() for _ in paths]
        computed += simulate(requests, lengths, rows, prefix_tokens=2048)[0]
        naive += n * sum(map(len, paths))
        paths = [path + text(400) for path in paths for _ in range(n)]
    assert naive == questions * 33_000
    assert computed <= questions * 7_500


def test_each_shard_of_a_mesh_computes_the_shared_prefixes_of_its_own_questions_once():
    """Eight shards, each with questions of its own: what is computed twice is what one shard takes
    over from another at the end, less than a prompt for every other entry."""
    rng, n, questions = np.random.default_rng(0), 3, 64
    drafts = [tuple(rng.integers(2, 1000, 200).tolist()) for _ in range(questions)]
    drafts = [d + tuple(rng.integers(2, 1000, 40).tolist()) for d in drafts for _ in range(n)]
    requests = [Request(draft, some_keys(rng, n)) for draft in drafts]
    lengths = [rng.integers(1, 60, n).tolist() for _ in drafts]
    alone, split = (simulate(requests, lengths, 64, shards=shards)[0] for shards in (1, 8))
    assert alone >= questions * (199 + n * 39)
    assert split - alone < 64 / 2 * 240


def test_shards_with_more_entries_than_prompts_share_the_prompts_evenly():
    """A shard takes over prompts for rows that would be idle, not for all of its entries."""
    rng = np.random.default_rng(4)
    requests = [Request((i, i + 1), some_keys(rng, 3)) for i in range(40)]
    scheduler = Scheduler(requests, SamplingParams(), CacheShape(8 * 16, 8 * 16, 3, 16, 16), 8)
    scheduler.admit()
    assert [scheduler._load(shard) for shard in range(8)] == [15] * 8


@pytest.mark.parametrize("shards", [1, 2])
def test_a_run_takes_further_requests_and_grows_and_shrinks_around_them(shards):
    """Each completion of the first requests is followed by a request of another policy."""
    rng = np.random.default_rng(5)
    params = [SamplingParams(max_new_tokens=n, end_ids=(END,)) for n in (50, 60)]
    shapes = [CacheShape(shards * n, shards * n, 3, 32, 60) for n in (4, 8, 16)]
    requests = [Request((2, i, 3), some_keys(rng, 2)) for i in range(2 * shards)]
    scheduler = Scheduler(requests, params, shapes[0], shards, apart=True)
    device, calls, seen = Device(shapes[0], shards), PrefillShape.of(4, 16, shards), set()
    lengths = [rng.integers(1, 9, 2).tolist() for _ in requests]

    def resize(shape: CacheShape) -> None:
        device.held = device.held[scheduler.resize(shape)[0]]
        seen.add(shape.rows)

    while not scheduler.finished:
        while (shape := scheduler.shape) != shapes[-1] and scheduler.demand > shape.rows:
            resize(shapes[shapes.index(shape) + 1])
        for call in plan_calls(scheduler.admit(), scheduler.shape.entries, calls, shards):
            device.prefill(call)
        if scheduler.shape != shapes[0] and scheduler.fits(shapes[0].rows):
            resize(shapes[0])
        scheduler.process_output(*device.decode(scheduler, lengths, 3, scheduler.idle_limit(0)))
        for growth in scheduler.record():
            one = growth.completion
            if one.finish and one.request < 2 * shards:
                prompt = (*scheduler.requests[one.request].prompt, 4 + one.sibling)
                scheduler.add(Request(prompt, some_keys(rng, 3), policy=1))
                lengths.append(rng.integers(1, 9, 3).tolist())
    drawn = [[len(c.tokens) for c in completions] for completions in scheduler.results()]
    assert drawn == lengths and len(drawn) == 6 * shards
    assert seen >= {shapes[0].rows, shapes[1].rows}
    assert np.all(scheduler.rows.completion == IDLE)


@pytest.mark.parametrize(
    ("rows", "n"), [(16, 3), (64, 1), (64, 2), (64, 3), (64, 4), (64, 16), (512, 3)]
)
def test_at_most_a_tenth_of_the_row_steps_is_wasted(rows, n):
    """Four batches of work, in lengths like those of GSM8K's worked answers: 126 on average."""
    rng = np.random.default_rng(1)
    count = -(-4 * rows // n)
    requests = [Request(tuple(rng.integers(2, 99, 80).tolist()), some_keys(rng, n))
                for _ in range(count)]  # fmt: skip
    lengths = np.clip(rng.lognormal(4.73, 0.45, (count, n)), 10, 400).astype(int).tolist()
    _, steps, useful = simulate(requests, lengths, rows, siblings_per_entry(n, 0))
    assert useful == sum(map(sum, lengths))
    assert 1 - useful / steps <= 0.10


@pytest.mark.parametrize(("n", "entries"), [(1, 1), (3, 1), (4, 1), (5, 2), (9, 3)])
def test_siblings_share_one_copy_of_their_prompt(n, entries):
    rng = np.random.default_rng(3)
    requests = [
        Request((i, *rng.integers(2, 99, 20).tolist()), some_keys(rng, n)) for i in range(3)
    ]
    shape = CacheShape(64, 32, siblings_per_entry(n, 0), 32, 16)
    scheduler = Scheduler(requests, SamplingParams(), shape)
    computed = sum(len(prefill.tokens) for prefill in scheduler.admit())
    assert computed == 3 * 20
    used = np.array([completion.entry for completion in scheduler.completions])
    assert np.all(used >= 0) and len(np.unique(used)) == 3 * entries
    assert all(len(np.unique(used[n * i : n * i + n])) == entries for i in range(3))


def test_a_prompt_grown_in_pieces_from_any_source_is_whole():
    rng = np.random.default_rng(2)
    for _ in range(12):
        starts = [tuple(rng.integers(2, 4, rng.integers(1, 30)).tolist()) for _ in range(4)]
        requests = [
            Request(
                starts[rng.integers(4)] + tuple(rng.integers(2, 4, rng.integers(1, 40)).tolist()),
                some_keys(rng, int(rng.integers(1, 5))),
            )
            for _ in range(15)
        ]
        lengths = [rng.integers(1, 9, len(r.keys)).tolist() for r in requests]
        shards, siblings = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        rows = shards * int(rng.integers(1, 9))
        sizes = {"chunk": 3, "prefill": (4, 16), "prefix_tokens": 80, "shards": shards}
        simulate(requests, lengths, rows, siblings, **sizes)


SPEC = ModelSpec("llama", 1000, 64, 2, 4, 2, 16, 128, 4096, Rope(1e4))


def test_memory_plan_counts_the_caches_and_holds_the_budget():
    shape, devices = CacheShape(1, 1, 3, 512, 128), Devices("cpu")
    plan = plan_memory(SPEC, shape, np.dtype(np.float32), 1.0, devices)
    token = 2 * SPEC.num_layers * SPEC.kv_heads * SPEC.head_dim * 4
    assert token_bytes(SPEC, np.dtype(np.float32)) == token
    assert plan.held(4, 2) >= token * (2 * 512 + 4 * 128)
    assert plan.need(4) == plan.held(4, 2)  # three completions of a prompt, two of them busy
    assert plan.need(plan.most_rows) <= 2**30 < plan.need(plan.most_rows + 1)


def test_too_large_a_request_is_refused_with_the_size_that_fits():
    shape = CacheShape(1, 1, 1, 1 << 20, 4096)
    with pytest.raises(UserError, match=r"enough for [1-9][0-9]* tokens"):
        plan_memory(SPEC, shape, np.dtype(np.float32), 0.1, Devices("cpu"))


def test_rows_that_long_prompts_leave_no_room_for_are_fewer_and_no_error():
    """A search may come to its longest prompts after hours."""
    config = SamplerConfig(rows=320, memory_gb=0.25, streams=1)
    short, long = (
        plan_shapes(
            SPEC, CacheShape(1, 1, 1, tokens, 16), np.dtype(np.float32), config, Devices("cpu")
        )
        for tokens in (16, 4096)
    )
    assert short[0][-1].rows == 320
    assert 0 < long[0][-1].rows == long[1].most_rows < 320


@pytest.mark.parametrize(("most", "shards"), [(64, 1), (1, 1), (6, 1), (64, 8), (8, 8), (24, 2)])
def test_row_counts_halve_down_and_divide_over_the_mesh(most, shards):
    counts = row_counts(most, shards)
    assert counts[-1] == most and all(count % shards == 0 for count in counts)
    assert all(a < b <= 2 * a for a, b in pairwise(counts))


def test_streams_share_every_kind_of_prompt():
    """Kinds write at different length: one stream with all of a kind could end much later."""
    sampler = Sampler.__new__(Sampler)
    sampler.streams, sampler._best_rows = 2, 1
    keys = np.zeros((1, 2), np.uint32)
    requests = [Request((i,), keys, kind="long" if i < 8 else "short") for i in range(20)]
    first, second = sampler._split(list(range(20)), requests)
    assert first == [*range(4), *range(8, 14)] and second == [*range(4, 8), *range(14, 20)]
    alike = [Request((9 - i,), keys) for i in range(10)]
    assert sampler._split(list(range(10)), alike) == [[9, 8, 7, 6, 5], [4, 3, 2, 1, 0]]
