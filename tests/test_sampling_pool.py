"""The pool on the host alone: what is computed, what is shared, which rows idle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from malt_jax.errors import UserError
from malt_jax.models.spec import ModelSpec, Rope
from malt_jax.sampling.memory import Shapes, budget, ladder, slots_for, together, token_bytes
from malt_jax.sampling.pool import Pool
from malt_jax.sampling.prefill import Extend, Fork, Lanes, calls
from malt_jax.sampling.programs import IDLE, Log, Rows
from malt_jax.sampling.request import Request, Settings

END = 1


class Device:
    """Stands in for the device: checks every read of a prefix, decodes to given lengths."""

    def __init__(self, shapes: Shapes, parts: int):
        self.held, self.parts = np.full((shapes.slots, shapes.places), -1), parts
        self.width = shapes.width
        self.computed = 0

    def prefill(self, call: Fork | Extend) -> None:
        slots, count = len(self.held), len(call.target)
        for place, target in enumerate(call.target):
            if target < slots:  # a part of the mesh sees its own lanes and its own slots alone
                part = place * self.parts // count
                numbers = (target, call.source[place]) if isinstance(call, Fork) else (target,)
                assert all(number * self.parts // slots == part for number in numbers)
        if isinstance(call, Fork):
            read = self.held[call.source].copy()
            for row, target in enumerate(call.target):
                if target < len(self.held):
                    self.held[target] = read[row]
            return
        lanes = [i for i, target in enumerate(call.target) if target < len(self.held)]
        for lane in lanes:
            slot, start, length = call.target[lane], call.start[lane], call.length[lane]
            self.held[slot, start : start + length] = call.tokens[lane, :length]
            self.held[slot, start + length :] = -1
            self.computed += int(length)
        assert all(np.all(self.held[call.target[i], : call.start[i]] >= 0) for i in lanes)

    def decode(self, pool: Pool, lengths, chunk: int, enough: int) -> tuple[Rows, Log]:
        """`lengths[request][sibling]` tokens a completion; what `programs.decode` does."""
        rows, waiting = Rows(*(x.copy() for x in pool.rows)), pool.waiting()
        count, own = len(rows.completion), len(rows.completion) // self.parts
        taken = np.zeros(self.parts, int)

        def begin() -> None:
            for row in np.flatnonzero(rows.completion == IDLE):
                entry = row // own, taken[row // own]
                if entry[1] < pool.queue_depth and waiting.completion[entry] != IDLE:
                    taken[row // own] += 1
                    for mine, queued in zip(rows, waiting, strict=True):
                        mine[row] = queued[entry]
            busy = np.flatnonzero(rows.completion != IDLE)
            assert np.all(rows.slot[busy] * self.parts // len(self.held) == busy // own)
            assert np.bincount(rows.slot[busy], minlength=1).max() <= self.width

        shape = (chunk, count)
        log = [np.full(shape, IDLE), np.zeros(shape, int), np.zeros(shape)]
        begin()
        step = 0
        while step < chunk and (rows.completion == IDLE).sum() < enough:
            log[0][step] = rows.completion
            for row in np.flatnonzero(rows.completion != IDLE):
                index, sibling = pool.completions[rows.completion[row]]
                request = pool.requests[index]
                held = self.held[rows.slot[row], : rows.prompt[row]]
                assert (*held, *request.prompt[-1:]) == request.prompt
                assert tuple(rows.key[row]) == tuple(request.keys[sibling])
                rows.length[row] += 1
                log[1][step, row] = 7
                if rows.length[row] == lengths[index][sibling]:
                    log[1][step, row] = END
                    rows.length[row], rows.completion[row] = 0, IDLE
            begin()
            step += 1
        return rows, Log(*log, steps=np.int32(step), taken=taken, bad=np.bool_(False))


def simulate(requests, lengths, rows, width=3, chunk=16, lanes=(16, 256), places=1024, parts=1):
    """Runs a pool to its end; returns (prefill tokens, row-steps, useful row-steps)."""
    settings = Settings(max_new_tokens=1000, end_ids=(END,))
    most = parts * slots_for(rows // parts, width)
    rungs = [Shapes(r, min(r, most), width, places, 1000) for r in ladder(rows, parts)]
    shapes = rungs.pop()
    pool = Pool(requests, settings, shapes, parts)
    device, steps = Device(shapes, parts), 0
    while not pool.finished:
        for call in calls(pool.admit(), shapes.slots, Lanes.of(*lanes, parts), parts):
            device.prefill(call)
        while rungs and pool.can_shrink(rungs[-1].rows):
            shapes = rungs.pop()
            device.held = device.held[pool.shrink(shapes)[0]]
        enough = pool.enough(rungs[-1].rows if rungs else 0)
        drawn, log = device.decode(pool, lengths, chunk, enough)
        assert log.steps
        steps += int(log.steps) * shapes.rows
        pool.absorb(drawn, log)
    for drafts, wanted in zip(pool.drafts, lengths, strict=True):
        assert [len(d.tokens) for d in drafts] == list(wanted)
        assert all(d.finish == "eos" for d in drafts)
    return device.computed, steps, pool.useful_steps


def some_keys(rng, n):
    return rng.integers(0, 2**32, (n, 2), dtype=np.uint32)


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_a_tree_of_three_roles_computes_every_head_once(rows):
    """200-token questions, 400-token turns, n = 3: at most 7,500 tokens a question, not 33,000."""
    rng, n, questions = np.random.default_rng(0), 3, 4
    text = lambda count: tuple(rng.integers(2, 1000, count).tolist())  # noqa: E731
    paths = [text(200) for _ in range(questions)]
    computed = naive = 0
    for _ in range(3):
        requests = [Request(path, some_keys(rng, n)) for path in paths]
        lengths = [rng.integers(1, 60, n).tolist() for _ in paths]
        computed += simulate(requests, lengths, rows, places=2048)[0]
        naive += n * sum(map(len, paths))
        paths = [path + text(400) for path in paths for _ in range(n)]
    assert naive == questions * 33_000
    assert computed <= questions * 7_500


def test_parts_of_a_mesh_compute_heads_of_their_own_questions_once():
    """Eight parts, each with questions of its own: what is computed twice is what one part takes
    over from another at the end, less than a prompt for every other slot."""
    rng, n, questions = np.random.default_rng(0), 3, 64
    drafts = [tuple(rng.integers(2, 1000, 200).tolist()) for _ in range(questions)]
    drafts = [d + tuple(rng.integers(2, 1000, 40).tolist()) for d in drafts for _ in range(n)]
    requests = [Request(draft, some_keys(rng, n)) for draft in drafts]
    lengths = [rng.integers(1, 60, n).tolist() for _ in drafts]
    alone, split = (simulate(requests, lengths, 64, parts=parts)[0] for parts in (1, 8))
    assert alone >= questions * (199 + n * 39)
    assert split - alone < 64 / 2 * 240


@pytest.mark.parametrize(
    ("rows", "n"), [(16, 3), (64, 1), (64, 2), (64, 3), (64, 4), (64, 16), (512, 3)]
)
def test_padding_waste_is_at_most_a_tenth(rows, n):
    """Four batches of work, in lengths like those of GSM8K's worked answers: 126 on average."""
    rng = np.random.default_rng(1)
    count = -(-4 * rows // n)
    requests = [Request(tuple(rng.integers(2, 99, 80).tolist()), some_keys(rng, n))
                for _ in range(count)]  # fmt: skip
    lengths = np.clip(rng.lognormal(4.73, 0.45, (count, n)), 10, 400).astype(int).tolist()
    _, steps, useful = simulate(requests, lengths, rows, together(n, 0))
    assert useful == sum(map(sum, lengths))
    assert 1 - useful / steps <= 0.10


@pytest.mark.parametrize(("n", "slots"), [(1, 1), (3, 1), (4, 1), (5, 2), (9, 3)])
def test_siblings_share_one_copy_of_their_prompt(n, slots):
    rng = np.random.default_rng(3)
    requests = [
        Request((i, *rng.integers(2, 99, 20).tolist()), some_keys(rng, n)) for i in range(3)
    ]
    pool = Pool(requests, Settings(), Shapes(64, 32, together(n, 0), 32, 16))
    computed = sum(len(admission.tokens) for admission in pool.admit())
    assert computed == 3 * 20
    assert np.all(pool.slot >= 0) and len(np.unique(pool.slot)) == 3 * slots
    assert all(len(np.unique(pool.slot[n * i : n * i + n])) == slots for i in range(3))


def test_a_prompt_grown_in_pieces_from_any_source_is_whole():
    rng = np.random.default_rng(2)
    for _ in range(12):
        heads = [tuple(rng.integers(2, 4, rng.integers(1, 30)).tolist()) for _ in range(4)]
        requests = [
            Request(
                heads[rng.integers(4)] + tuple(rng.integers(2, 4, rng.integers(1, 40)).tolist()),
                some_keys(rng, int(rng.integers(1, 5))),
            )
            for _ in range(15)
        ]
        lengths = [rng.integers(1, 9, len(r.keys)).tolist() for r in requests]
        parts, width = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        rows = parts * int(rng.integers(1, 9))
        simulate(requests, lengths, rows, width, chunk=3, lanes=(4, 16), places=80, parts=parts)


SPEC = ModelSpec("llama", 1000, 64, 2, 4, 2, 16, 128, 4096, Rope(1e4))


def test_memory_plan_counts_the_caches_and_holds_the_budget():
    plan = budget(SPEC, Shapes(1, 1, 3, 512, 128), np.dtype(np.float32), memory_gb=1.0)
    token = 2 * SPEC.num_layers * SPEC.kv_heads * SPEC.head_dim * 4
    assert token_bytes(SPEC, np.dtype(np.float32)) == token
    assert plan.held(4, 2) >= token * (2 * 512 + 4 * 128)
    assert plan.need(4) == plan.held(4, 2)  # three completions of a prompt, two of them busy
    assert plan.need(plan.rows) <= 2**30 < plan.need(plan.rows + 1)


def test_too_large_a_request_is_refused_with_the_size_that_fits():
    with pytest.raises(UserError, match=r"enough for [1-9][0-9]* tokens"):
        budget(SPEC, Shapes(1, 1, 1, 1 << 20, 4096), np.dtype(np.float32), memory_gb=0.1)


@pytest.mark.parametrize(("most", "shards"), [(64, 1), (1, 1), (6, 1), (64, 8), (8, 8), (24, 2)])
def test_rungs_halve_down_and_divide_over_the_mesh(most, shards):
    rungs = ladder(most, shards)
    assert rungs[-1] == most and all(rung % shards == 0 for rung in rungs)
    assert all(a < b <= 2 * a for a, b in pairwise(rungs))
