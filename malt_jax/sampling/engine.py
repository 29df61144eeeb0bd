"""The sampler: many completions of many prompts, each prompt's keys and values computed once.

A call's prompts are grouped by capacity. Each group runs over a fixed number of slots: free slots
are filled, all rows decode for a few steps, finished completions are taken over, and so on. While
the device decodes, the host looks for stop texts in what the chunk before has drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter
from malt_jax.models.sharding import RULES
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling import cache, memory, programs
from malt_jax.sampling.compiled import Programs, use_cache_dir
from malt_jax.sampling.config import SamplerConfig
from malt_jax.sampling.memory import Shapes
from malt_jax.sampling.pool import Admission, Pool
from malt_jax.sampling.prefill import Call, calls
from malt_jax.sampling.request import MAX_END_IDS, Completion, Request, Settings
from malt_jax.sampling.stats import Stats

__all__ = ["Completion", "Request", "Sampler", "Settings"]

OnTokens = Callable[[int, int, list[int]], None]
"""Called with (request, completion, new token ids) as they come."""

BEST_ROWS = {"cpu": 64}
"""Rows beyond which a platform gains little; elsewhere ACCELERATOR_ROWS."""
ACCELERATOR_ROWS = 512


class Sampler:
    """Draws completions from one model; adapters and settings change without compiling anew."""

    def __init__(self, model: Any, config: SamplerConfig | None = None, mesh: Mesh | None = None):
        self.config = config or SamplerConfig()
        self.model, self.spec, self.mesh = model, model.spec, mesh
        self.stats = Stats()
        use_cache_dir(self.config.cache_dir)
        self._programs = Programs(self.stats)
        platform = jax.default_backend()
        self._best_rows = BEST_ROWS.get(platform, ACCELERATOR_ROWS)
        self._prefill_tokens = self.config.prefill_tokens or (256 if platform == "cpu" else 4096)
        self._params = model.params
        self._context = partial(jax.set_mesh, mesh) if mesh is not None else nullcontext
        self._shards = _extent(mesh, "slots", 0)
        dtype = jax.tree.leaves(self._params)[0].dtype
        self._dtype = jnp.int8 if self.config.cache == "int8" else dtype

    def sample(
        self,
        requests: Sequence[Request],
        settings: Settings,
        adapter: Adapter | None = None,
        on_tokens: OnTokens | None = None,
    ) -> list[list[Completion]]:
        """One completion a key for every request, in their order.

        The result depends on prompts, keys, settings and weights, not on the order of the
        requests or on what else is in the call. Raises UserError for a request that can't be
        served.
        """
        self._check(requests, settings)
        ring = _bucket(self.config.new_token_buckets, settings.max_new_tokens, "max_new_tokens")
        groups = self._group(requests)
        done: list[list[Completion]] = [[] for _ in requests]
        for places, members in sorted(groups.items()):
            chosen = [requests[i] for i in members]
            hook = on_tokens and (lambda i, j, new, m=members: on_tokens(m[i], j, new))
            with self._context():
                results = self._run(chosen, settings, adapter, hook, places, ring)
            for index, drawn in zip(members, results, strict=True):
                done[index] = drawn
        return done

    def _group(self, requests: Sequence[Request]) -> dict[int, list[int]]:
        """Requests by prompt capacity; a group too small to keep the rows busy joins the next."""
        groups: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            need = max(1, len(request.prompt) - 1)
            places = _bucket(self.config.prefix_buckets, need, "a prompt")
            groups.setdefault(places, []).append(index)
        sizes = sorted(groups)
        for small, larger in pairwise(sizes):
            if sum(len(requests[i].keys) for i in groups[small]) < 4 * self._best_rows:
                groups[larger] += groups.pop(small)
        return groups

    def _check(self, requests: Sequence[Request], settings: Settings) -> None:
        for index, request in enumerate(requests):
            length = len(request.prompt)
            if not length:
                raise UserError(f"request {index}: the prompt is empty; give at least one token.")
            if request.keys.ndim != 2 or request.keys.shape[1] != 2:
                raise UserError(
                    f"request {index}: keys have shape {request.keys.shape}, allowed: (n, 2)."
                )
            if length + settings.max_new_tokens > self.spec.context:
                raise UserError(
                    f"request {index}: a prompt of {length} tokens and max_new_tokens "
                    f"{settings.max_new_tokens} exceed the model's context of {self.spec.context}; "
                    "shorten one of them."
                )
            if min(request.prompt) < 0 or max(request.prompt) >= self.spec.vocab:
                raise UserError(
                    f"request {index}: a token id is outside the vocabulary, 0 to "
                    f"{self.spec.vocab - 1}; the prompt was made with another tokenizer."
                )

    def _shapes(self, completions: int, places: int, ring: int) -> Shapes:
        """Slots near the number of completions: the most that is best and fits, or that over 4^k.

        A ladder this coarse keeps the programs few; slots left over take completions from others.
        """
        width = self.config.width
        plan = memory.budget(
            self.spec,
            Shapes(1, width, places, ring),
            self._dtype,
            self.config.memory_gb,
            self._shards,
            _extent(self.mesh, "kv_heads", self.spec.kv_heads),
        )
        wanted = self.config.slots or max(1, self._best_rows // width) * self._shards
        if self.config.slots and plan.slots < wanted:
            raise UserError(
                f"sampler.slots: {wanted} slots need {plan.need(wanted) / 2**30:.2f} GiB a device, "
                f"{plan.allowed / 2**30:.2f} are allowed; set at most {plan.slots}."
            )
        most = min(wanted, plan.slots)
        slots = most
        while slots > 1 and completions * 2 <= slots * width:
            slots = -(-slots // 4)
        slots = -(-slots // self._shards) * self._shards
        self.stats.peak_bytes = max(self.stats.peak_bytes, plan.need(slots))
        return Shapes(slots, width, places, ring)

    def saturated(self, prompt_tokens: int, new_tokens: int) -> Saturated:
        """The decode program with every row busy to the end, for measuring what a step costs."""
        return Saturated(self, prompt_tokens, new_tokens)

    def _run(
        self,
        requests: Sequence[Request],
        settings: Settings,
        adapter: Adapter | None,
        on_tokens: OnTokens | None,
        places: int,
        ring: int,
    ) -> list[list[Completion]]:
        shapes = self._shapes(sum(len(r.keys) for r in requests), places, ring)
        pool = Pool(requests, settings, shapes.slots, shapes.width, places)
        device = _Device(self, shapes, adapter, settings)
        stats, grown = self.stats, []
        while not pool.finished:
            started = time.perf_counter() - stats.compile_seconds
            for call in self._prefill(pool.admit(), shapes):
                device.extend(call)
            # With work left, a chunk ends early when an eighth of the slots is free.
            enough = max(1, shapes.slots // 8) if pool.can_fill else shapes.slots
            device.decode(pool, enough)
            dispatched = time.perf_counter() - stats.compile_seconds
            self._look(pool, grown, on_tokens)
            late, looked = device.ready(), time.perf_counter() - stats.compile_seconds
            rows, log = device.result()
            if bool(log.bad):
                raise UserError(
                    "model: its logits hold NaN or infinity, so the weights or the adapter are "
                    "broken; load them anew or train with a lower learning rate."
                )
            returned = time.perf_counter() - stats.compile_seconds
            stats.row_steps += int(log.steps) * shapes.slots * shapes.width
            grown = pool.absorb(rows, log)
            absorbed = time.perf_counter() - stats.compile_seconds
            # The device is without work from its result to the next dispatch, and while the host
            # looks at what was drawn if it looks for longer than the device decodes.
            stats.seconds += absorbed - started
            stats.host_wait_seconds += (looked if late else dispatched) - started
            stats.host_wait_seconds += absorbed - returned
        self._look(pool, grown, on_tokens)
        stats.row_steps_useful += pool.useful_steps
        done = [[draft.done() for draft in drafts] for drafts in pool.drafts]
        for request, completions in zip(requests, done, strict=True):
            stats.prefill_tokens_naive += len(request.prompt) * len(completions)
            stats.completions += len(completions)
            stats.tokens_generated += sum(len(c.tokens) for c in completions)
        return done

    def _prefill(self, admissions: list[Admission], shapes: Shapes) -> Iterable[Call]:
        for call in calls(
            admissions, shapes.slots, self.config.prefill_buckets, self._prefill_tokens
        ):
            self.stats.prefill_tokens_computed += int(call.length.sum())
            self.stats.prefill_tokens_padded += call.tokens.size
            yield call

    def _look(
        self, pool: Pool, grown: list[tuple[int, int, int]], on_tokens: OnTokens | None
    ) -> None:
        """Find stop texts in completions that grew, then pass their new tokens on."""
        for index, sibling, before in grown:
            tokens = pool.drafts[index][sibling].tokens
            if pool.settings.stop:
                length = stop_length(self.model.tokenizer, tokens, before, pool.settings)
                if length is not None:
                    pool.stop(index, sibling, length)
            if on_tokens:
                on_tokens(index, sibling, tokens[before:])


def stop_length(
    tokenizer: Any, tokens: Sequence[int], before: int, settings: Settings
) -> int | None:
    """Tokens up to the one that completes a stop text, or None; `before` have been looked at."""
    count = len(tokens) - (tokens[-1] in settings.end_ids)

    def found(length: int) -> bool:
        text = tokenizer.decode(list(tokens[:length]))
        return any(stop in text for stop in settings.stop)

    if not found(count):
        return None
    return next((n for n in range(before + 1, count) if found(n)), count)


class _Device:
    """One run's caches and executables."""

    def __init__(self, sampler: Sampler, shapes: Shapes, adapter: Adapter | None, how: Settings):
        self._sampler, self._shapes, self._adapter = sampler, shapes, adapter
        spec, dtype = sampler.spec, sampler._dtype
        self._prefix = _allocate(spec, shapes.slots, shapes.places, dtype)
        self._suffix = _allocate(spec, shapes.slots * shapes.width, shapes.ring, dtype)
        self._clock = np.int32(0)
        ends = [*how.end_ids, *[-1] * (MAX_END_IDS - len(how.end_ids))]
        self._end_ids = np.array(ends, np.int32)
        self._like = jax.tree.structure(adapter), *(x.shape for x in jax.tree.leaves(adapter))

    def extend(self, call: Call) -> None:
        sampler = self._sampler
        function = partial(programs.extend, sampler.model.graph)
        args = (sampler._params, self._adapter, self._prefix, *call)
        key = ("extend", call.tokens.shape, self._shapes, self._like)
        self._prefix = sampler._programs.get(key, function, (2,), args)(*args)

    def decode(self, pool: Pool, enough: int) -> None:
        sampler = self._sampler
        function = partial(programs.decode, sampler.model.graph, sampler.config.chunk_steps)
        args = (
            sampler._params,
            self._adapter,
            self._prefix,
            self._suffix,
            pool.rows,
            pool.plan(),
            self._end_ids,
            self._clock,
            np.int32(enough),
        )
        key = ("decode", self._shapes, self._like)
        program = sampler._programs.get(key, function, (3,), args)
        self._suffix, self._rows, self._log, self._clock = program(*args)

    def ready(self) -> bool:
        return self._log.steps.is_ready()

    def result(self) -> tuple[programs.Rows, programs.Log]:
        return jax.device_get((self._rows, self._log))


class Saturated:
    """Endless chunks of decoding at full batch: no end tokens, nothing to refill."""

    def __init__(self, sampler: Sampler, prompt_tokens: int, new_tokens: int):
        config, rows = sampler.config, sampler._best_rows
        places = _bucket(config.prefix_buckets, prompt_tokens, "a prompt")
        ring = _bucket(config.new_token_buckets, new_tokens, "max_new_tokens")
        self.shapes = sampler._shapes(rows, places, ring)
        self.kv_itemsize = jnp.dtype(sampler._dtype).itemsize
        keys = np.zeros((self.shapes.width, 2), np.uint32)
        request = Request((0,) * prompt_tokens, keys)
        how = Settings(max_new_tokens=ring)
        slots = self.shapes.slots
        self._pool = Pool([request] * slots, how, slots, self.shapes.width, places)
        self._pool.admit()
        self._context = sampler._context
        with self._context():
            self._device = _Device(sampler, self.shapes, None, how)

    def chunk(self) -> int:
        """Decode one chunk; returns its steps."""
        with self._context():
            self._device.decode(self._pool, self.shapes.slots)
            return int(self._device.result()[1].steps)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _allocate(spec: ModelSpec, count: int, places: int, dtype: Any) -> list[cache.KV]:
    return programs.laid_out(cache.empty(spec, count, places, dtype))


def _extent(mesh: Mesh | None, axis: str, size: int) -> int:
    """Into how many parts the mesh splits a logical axis of this size; 0: of any size."""
    if mesh is None:
        return 1
    parts = math.prod(mesh.shape.get(name, 1) for name in RULES[axis])
    return parts if size % parts == 0 else 1


def _bucket(sizes: Sequence[int], need: int, what: str) -> int:
    """The smallest capacity that holds `need` tokens."""
    for size in sizes:
        if need <= size:
            return size
    raise UserError(
        f"sampler: {what} of {need} tokens is longer than the largest bucket, {sizes[-1]}; add a "
        "larger size to sampler.prefix_buckets or sampler.new_token_buckets."
    )
