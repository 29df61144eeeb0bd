"""Roofline of the decode step on this machine: what it needs, against the rates measured here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax.models.matmul import matmul
from malt_jax.models.spec import ModelSpec
from malt_jax.planning.formula import active_weights, layer_weights
from malt_jax.sampling.memory import CacheShape, token_bytes
from malt_jax.sampling.request import Request, SamplingParams
from malt_jax.sampling.sampler import Sampler
from malt_jax.sampling.scheduler import Scheduler

ROUNDS = 5
"""Repetitions of each measurement, in turns. The best counts: others may share the machine."""


def step_cost(
    spec: ModelSpec, shapes: CacheShape, streams: int, weight_bytes: int, cache_dtype: Any
) -> dict[str, float]:
    """Floating-point operations and bytes of one decode step of all streams, with all rows busy.

    Each stream reads the weights once, of which `weight_bytes` are in memory. Every token of the
    caches counts, filled or not, because programs of static shapes read all of them.
    """
    rows = shapes.rows
    q = spec.heads * spec.head_dim
    # All of the head, but no embedding table: of that one, a step reads a row per token.
    weights = spec.num_layers * layer_weights(spec) + spec.d_model * spec.vocab
    met = weights - spec.num_layers * (layer_weights(spec) - active_weights(spec))
    places = shapes.prefix_tokens + shapes.new_tokens
    # Scores and the mix of values, at two operations per multiply-add.
    attention = 2 * 2 * spec.num_layers * q * places * rows
    # A prefix counts once for all rows that read it, a suffix once for its row.
    cached = shapes.entries * shapes.prefix_tokens + rows * shapes.new_tokens
    return {
        "flops": streams * (2 * met * rows + attention),
        "bytes": streams
        * (weight_bytes + token_bytes(spec, cache_dtype) * cached + 4 * rows * spec.vocab),
    }


def measure(
    sampler: Sampler, prompt_tokens: int, new_tokens: int, siblings: int
) -> dict[str, float]:
    """The fraction of this machine's measured rates that decoding reaches with all rows busy.

    The rate of matrix products is measured on the products of the model's own MLP at this number of
    rows, each with its own weights, and nothing else.
    """
    shapes = sampler.shapes(prompt_tokens, new_tokens, siblings)[-1]
    streams = sampler.streams
    decode = _side_by_side([_saturated(sampler, shapes, prompt_tokens) for _ in range(streams)])
    spec, rows = sampler.spec, shapes.rows * streams
    dtype = sampler.dtype
    products, flops = _mlp_products(spec, rows, dtype)
    # Meant to be larger than any processor cache, so that reading it measures the memory.
    stream = jnp.ones(1 << 26, dtype)
    read = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    copy = jax.jit(lambda x: x + 1)
    best = dict.fromkeys(("product", "read", "copy", "step"), float("inf"))
    for _ in range(ROUNDS + 1):  # the first round compiles
        timed = {
            "product": _seconds(products),
            "read": _seconds(lambda: read(stream)),
            "copy": _seconds(lambda: copy(stream)),
        }
        began = time.perf_counter()
        steps = decode()
        timed["step"] = (time.perf_counter() - began) / steps
        best = {name: min(best[name], timed[name]) for name in best}
    cost = step_cost(spec, shapes, streams, _weight_bytes(sampler), sampler.cache_dtype)
    rates = {
        "matmul_flops_per_s": flops / best["product"],
        "read_bytes_per_s": stream.nbytes / best["read"],
        "copy_bytes_per_s": 2 * stream.nbytes / best["copy"],
    }
    by_matmul = cost["flops"] / rates["matmul_flops_per_s"]
    # At the rate of reading: a step writes little beside what it reads.
    by_memory = cost["bytes"] / rates["read_bytes_per_s"]
    return {
        "rows": rows,
        **{f"step_{name}": value for name, value in cost.items()},
        **rates,
        "step_seconds": best["step"],
        "tokens_per_s": rows / best["step"],
        "step_seconds_by_matmul": by_matmul,
        "step_seconds_by_memory": by_memory,
        "matmul_fraction": by_matmul / best["step"],
        "memory_fraction": by_memory / best["step"],
    }


def _weight_bytes(sampler: Sampler) -> int:
    """Bytes of the weights that a step reads, as they are in memory."""
    params = sampler.params
    # Of an embedding table that is not the head as well, a step reads one row per token.
    unread = [] if sampler.spec.tied else jax.tree.leaves(params["embed"])
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - sum(x.nbytes for x in unread)


def _saturated(sampler: Sampler, shapes: CacheShape, prompt_tokens: int) -> Callable[[], int]:
    """A function that decodes one chunk, all rows busy to its end, and returns its steps."""
    # No prompt is prefilled and the caches begin as zeros, since with static shapes the time of
    # a step does not depend on the values.
    keys = np.zeros((shapes.siblings, 2), np.uint32)
    requests = [Request((0,) * prompt_tokens, keys)] * shapes.entries
    # No row may fall idle within the chunk: no end tokens, and a limit that lies beyond its steps.
    params = SamplingParams(max_new_tokens=max(shapes.new_tokens, sampler.config.chunk_steps + 1))
    scheduler = Scheduler(requests, params, shapes)
    scheduler.admit()
    device = sampler.device(shapes)

    def decode() -> int:
        # The scheduler is told nothing of the result, so each call repeats the same chunk.
        device.decode(scheduler, idle_limit=shapes.rows)
        return int(device.result()[1].steps)

    return decode


def _side_by_side(decodes: Sequence[Callable[[], int]]) -> Callable[[], int]:
    """A function that runs all of them at once, each in its own thread, and returns the steps."""

    def decode() -> int:
        with ThreadPoolExecutor(len(decodes)) as threads:
            return max(future.result() for future in [threads.submit(d) for d in decodes])

    return decode


def _mlp_products(spec: ModelSpec, rows: int, dtype: Any) -> tuple[Callable[[], Any], float]:
    keys = jax.random.split(jax.random.key(0), spec.num_layers)
    shape = (spec.d_model, spec.d_mlp)
    # Scaled so that the numbers keep their size through all layers and stay finite.
    up = [jax.random.normal(key, shape, dtype) * spec.d_model**-0.5 for key in keys]
    down = [jax.random.normal(key, shape[::-1], dtype) * spec.d_mlp**-0.5 for key in keys]

    @jax.jit
    def run(x: jax.Array, up: list[jax.Array], down: list[jax.Array]) -> jax.Array:
        for first, second in zip(up, down, strict=True):
            x = matmul(matmul(x, first), second)
        return x

    x = jnp.ones((rows, spec.d_model), dtype)
    flops = 2.0 * 2 * rows * spec.d_model * spec.d_mlp * spec.num_layers
    return lambda: run(x, up, down), flops


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began
