"""Measures the host's work between two chunks of decode steps, in which a device may wait for it.

    python scripts/host_between_chunks.py           # 512 rows, 3 siblings, chunks of 16 steps

Nothing is computed: completions of random lengths end as a device would report it. Prints the
milliseconds of processor time per chunk, of each part. `record` runs while the device works.
"""

from __future__ import annotations

import time
from collections import Counter

import jax
import numpy as np

from malt_jax.sampling.decode import IDLE, ChunkOutput, Rows
from malt_jax.sampling.memory import CacheShape, entries_for
from malt_jax.sampling.request import Request, SamplingParams
from malt_jax.sampling.scheduler import Scheduler

ROWS, SIBLINGS, STEPS, LONGEST = 512, 3, 16, 512
WARM, MEASURED = 10, 35
END, OTHER = 7, 9


def main() -> None:
    rng = np.random.default_rng(0)
    requests = [request(rng) for _ in range(900)]
    params = SamplingParams(max_new_tokens=LONGEST, end_ids=(END,))
    shape = CacheShape(ROWS, entries_for(ROWS, SIBLINGS), SIBLINGS, 1024, LONGEST)
    scheduler = Scheduler(requests, params, shape)
    lengths = rng.integers(1, LONGEST + 1, len(scheduler.completions))
    spent: Counter[str] = Counter()
    for chunk in range(WARM + MEASURED):
        marks = [time.thread_time()]
        scheduler.admit()
        marks.append(time.thread_time())
        queue = scheduler.queue()
        marks.append(time.thread_time())
        drawn = device(scheduler.rows, queue, lengths)
        before = time.thread_time()
        scheduler.process_output(*drawn)
        between = time.thread_time()
        scheduler.record()
        parts = {
            "admit": marks[1] - marks[0],
            "queue": marks[2] - marks[1],
            "process_output": between - before,
            "record": time.thread_time() - between,
        }
        if chunk >= WARM:
            spent.update(parts)
    for name, seconds in spent.items():
        print(f"{name:15s} {1000 * seconds / MEASURED:6.2f} ms per chunk")


def request(rng: np.random.Generator) -> Request:
    """A prompt of 300 to 900 tokens, the first 100 of which are every prompt's."""
    own = rng.integers(0, 1000, rng.integers(200, 800)).tolist()
    keys = rng.integers(0, 2**31, (SIBLINGS, 2)).astype(np.uint32)
    return Request(prompt=(*range(100, 200), *own), keys=keys)


def device(before: Rows, queue: Rows, lengths: np.ndarray) -> tuple[Rows, ChunkOutput]:
    """What a device would return for a chunk."""
    rows = jax.tree.map(np.array, before)
    completion = np.full((STEPS, ROWS), IDLE, np.int32)
    token = np.zeros((STEPS, ROWS), np.int32)
    taken = 0
    for step in range(STEPS):
        for row in range(ROWS):
            if rows.completion[row] == IDLE and queue.completion[0, taken] != IDLE:
                for mine, waiting in zip(rows, queue, strict=True):
                    if waiting is not None:
                        mine[row] = waiting[0, taken]
                taken += 1
            if (number := rows.completion[row]) == IDLE:
                continue
            completion[step, row] = number
            rows.length[row] += 1
            ends = rows.length[row] >= lengths[number]
            token[step, row] = END if ends else OTHER
            rows.completion[row] = IDLE if ends else number
    logprob, finite = np.zeros((STEPS, ROWS), np.float32), np.bool_(False)
    dequeued = np.array([taken])
    return rows, ChunkOutput(completion, token, logprob, np.int32(STEPS), dequeued, finite)


if __name__ == "__main__":
    main()
