"""The sampler: many completions of many prompts, each prompt's keys and values computed once.

A call's prompts are grouped by capacity. Each group runs over a fixed number of slots, which hold
prompts, and of rows, which decode: free slots are filled, rows decode for a few steps, one that
finishes takes the next completion of any slot, and so on. While the device decodes, the host looks
for stop texts in what the chunk before has drawn.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from malt_jax.config.sampler import SamplerConfig
from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter
from malt_jax.models.sharding import RULES
from malt_jax.sampling import memory
from malt_jax.sampling.clock import BESIDE, DEVICE, HOST, Clock
from malt_jax.sampling.compiled import Programs, use_cache_dir
from malt_jax.sampling.device import Device
from malt_jax.sampling.memory import Shapes
from malt_jax.sampling.pool import Admission, Pool
from malt_jax.sampling.prefill import Extend, Fork, Lanes, calls, no_forks
from malt_jax.sampling.quantised import quantise_kernels
from malt_jax.sampling.request import Completion, Request, Settings
from malt_jax.sampling.stats import Stats

__all__ = ["Completion", "Request", "Sampler", "Settings"]

Weights = Adapter | nnx.State | None
"""What a call draws with: an adapter over the model, whole weights in its place, or the model."""

OnTokens = Callable[[int, int, list[int]], None]
"""Called with (request, completion, new token ids) as they come."""


def prefill_lanes(config: SamplerConfig, platform: str, shards: int) -> Lanes:
    """The shapes of prefill calls on a platform."""
    lane, call = (16, 256) if platform == "cpu" else (128, 4096)
    return Lanes.of(config.prefill_lane or lane, config.prefill_tokens or call, shards)


class Sampler:
    """Draws completions from one model; adapters and settings change without compiling anew."""

    def __init__(
        self,
        model: Any,
        config: SamplerConfig | None = None,
        mesh: Mesh | None = None,
        on_chunk: Callable[[], None] = lambda: None,
    ):
        """`on_chunk` is called between two chunks of decode steps; what it raises ends the call."""
        self._on_chunk = on_chunk
        self.config = config or SamplerConfig()
        self.model, self.spec, self.mesh = model, model.spec, mesh
        self.stats = Stats()
        use_cache_dir(self.config.cache_dir)
        self._programs, self._clock = Programs(self.stats), Clock(self.stats)
        self._platform = jax.default_backend()
        self._best_rows = memory.BEST_ROWS.get(self._platform, memory.ACCELERATOR_ROWS)
        if mesh is not None and self.config.streams > 1:
            raise UserError(
                f"sampler.streams: found {self.config.streams}, allowed: 1 (or 0) on several "
                "devices, which must be given their work in one order; leave it out."
            )
        self.streams = memory.stream_count(self.config, self._platform, mesh is not None)
        """Batches that may decode side by side."""
        int8 = self.config.weights == "int8"
        self._params = quantise_kernels(model.params) if int8 else model.params
        self._context = partial(jax.set_mesh, mesh) if mesh is not None else nullcontext
        self._shards = _extent(mesh, "slots", 0)
        self._lanes = prefill_lanes(self.config, self._platform, self._shards)
        self.dtype = model.params["embed"][...].dtype
        """Of weights and activations."""
        self.cache_dtype = jnp.dtype(jnp.int8 if self.config.cache == "int8" else self.dtype)

    def sample(
        self,
        requests: Sequence[Request],
        settings: Settings,
        adapter: Weights = None,
        on_tokens: OnTokens | None = None,
    ) -> list[list[Completion]]:
        """One completion a key for every request, in their order.

        The result depends on prompts, keys, settings and weights, not on the order of the
        requests or on what else is in the call. Raises UserError for a request that can't be
        served.
        """
        self._check(requests, settings)
        done: list[list[Completion]] = [[] for _ in requests]
        for members in self._group(requests):
            chosen = [requests[i] for i in members]
            hook = on_tokens and (lambda i, j, new, m=members: on_tokens(m[i], j, new))
            results = self._spread(chosen, settings, adapter, hook)
            for index, drawn in zip(members, results, strict=True):
                done[index] = drawn
        return done

    def _spread(
        self,
        requests: Sequence[Request],
        settings: Settings,
        adapter: Weights,
        on_tokens: OnTokens | None,
    ) -> list[list[Completion]]:
        """The requests' completions, drawn in as many streams as there is work for.

        A stream takes neighbours in the order of their tokens, so that heads are still shared.
        """
        count = self._stream_count(requests) if on_tokens is None else 1
        stop = threading.Event()

        def run(members: Sequence[int]) -> list[list[Completion]]:
            with self._context():
                return self._run([requests[i] for i in members], settings, adapter, on_tokens, stop)

        if count == 1:
            return run(range(len(requests)))
        order = sorted(range(len(requests)), key=lambda i: requests[i].prompt)
        shares = [order[len(order) * k // count : len(order) * (k + 1) // count]
                  for k in range(count)]  # fmt: skip
        done: list[list[Completion]] = [[] for _ in requests]
        with ThreadPoolExecutor(count) as threads:
            futures = [threads.submit(run, share) for share in shares]
            try:
                for share, future in zip(shares, futures, strict=True):
                    for index, drawn in zip(share, future.result(), strict=True):
                        done[index] = drawn
            except BaseException:  # also Ctrl-C: the other streams must not go on for nothing
                stop.set()
                raise
        return done

    def _stream_count(self, requests: Sequence[Request]) -> int:
        """One stream unless each of several gets half of the platform's best batch."""
        completions = sum(len(request.keys) for request in requests)
        worth = max(1, 2 * completions // self._best_rows)
        return min(self.streams, worth, len(requests))

    def _group(self, requests: Sequence[Request]) -> list[list[int]]:
        """Requests by prompt capacity; a group too small to keep the rows busy joins the next."""
        groups: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            need = max(1, len(request.prompt) - 1)
            places = memory.bucket(self.config.prefix_buckets, need)
            groups.setdefault(places, []).append(index)
        sizes = sorted(groups)
        for small, larger in pairwise(sizes):
            if sum(len(requests[i].keys) for i in groups[small]) < 4 * self._best_rows:
                groups[larger] += groups.pop(small)
        return [groups[size] for size in sorted(groups)]

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

    def ladder(self, prompt_tokens: int, new_tokens: int, siblings: int = 1) -> list[Shapes]:
        """The shapes a stream runs prompts and completions up to these lengths in, smallest first.

        `siblings`: completions of a prompt. Raises UserError when they don't fit in memory, with
        what would.
        """
        return self._plan(prompt_tokens, new_tokens, siblings)[0]

    def _plan(
        self, prompt_tokens: int, new_tokens: int, siblings: int
    ) -> tuple[list[Shapes], memory.Budget]:
        one = Shapes(
            rows=1,
            slots=1,
            width=memory.together(siblings, self.config.width),
            places=memory.bucket(self.config.prefix_buckets, max(1, prompt_tokens - 1)),
            ring=memory.bucket(self.config.new_token_buckets, new_tokens),
        )
        return memory.rungs(
            self.spec,
            one,
            self.cache_dtype,
            self.config,
            self._platform,
            streams=self.streams,
            shards=self._shards,
            head_parts=_extent(self.mesh, "kv_heads", self.spec.kv_heads),
        )

    def device(self, shapes: Shapes, adapter: Weights = None) -> Device:
        """Empty caches of these shapes."""
        params = self._params
        if isinstance(adapter, nnx.State):
            params = quantise_kernels(adapter) if self.config.weights == "int8" else adapter
            adapter = None
        return Device(
            self._programs,
            self.model.graph,
            params,
            self.spec,
            adapter,
            shapes,
            self.cache_dtype,
            self.config.chunk_steps,
        )

    def warm_up(
        self, prompt_tokens: int, new_tokens: int, siblings: int = 1, adapter: Weights = None
    ) -> int:
        """Compile what calls with prompts and completions up to these lengths can need.

        Returns the number of executables there are then; such calls add none. It is
        `3 r - 1 + s (1 + t)` for r rungs of rows, with s different numbers of slots, and t sizes of
        prefill calls; for each capacity, for each number of siblings that share a slot, and for
        calls with and without adapter.
        """
        rungs = self.ladder(prompt_tokens, new_tokens, siblings)
        for lower, shapes in zip([None, *rungs], rungs, strict=False):
            with self._context():
                device = self.device(shapes, adapter)
                nothing = Pool([], Settings(), shapes, self._shards)
                device.prefill(no_forks(shapes.slots, self._shards))
                for count in self._lanes.counts:
                    device.prefill(self._lanes.padding(count, shapes.slots))
                device.decode(nothing, enough=0)
                if lower:
                    device.shrink(lower, *nothing.shrink(lower))
        return self.stats.executables

    def _run(
        self,
        requests: Sequence[Request],
        settings: Settings,
        adapter: Weights,
        on_tokens: OnTokens | None,
        stop: threading.Event,
    ) -> list[list[Completion]]:
        completions = sum(len(r.keys) for r in requests)
        longest = max(len(r.prompt) for r in requests)
        siblings = max(1, -(-completions // len(requests)))
        rungs, plan = self._plan(longest, settings.max_new_tokens, siblings)
        shapes = memory.first_rung(rungs, completions)
        held = plan.held(-(-shapes.rows // self._shards), -(-shapes.slots // self._shards))
        self.stats.cache_bytes = max(self.stats.cache_bytes, held * self.streams)
        pool = Pool(requests, settings, shapes, self._shards)
        self._clock.enter(pool, DEVICE)
        try:
            device = self.device(shapes, adapter)
            self._drain(pool, device, rungs, on_tokens, stop)
        finally:
            self._clock.enter(pool, None)
        return [] if stop.is_set() else self._finish(requests, pool)

    def _drain(
        self,
        pool: Pool,
        device: Device,
        rungs: Sequence[Shapes],
        on_tokens: OnTokens | None,
        stop: threading.Event,
    ) -> None:
        """Prefill and decode until the pool is done, or another stream says to stop."""
        grown: list[tuple[int, int, int]] = []
        while not pool.finished and not stop.is_set():
            self._clock.enter(pool, HOST)
            self._on_chunk()
            for call in self._prefill(pool.admit(), device.shapes.slots):
                ran_out = device.ready()
                device.prefill(call)
                self._clock.enter(pool, BESIDE, ran_out)
            while (lower := _lower(rungs, device.shapes)) and pool.can_shrink(lower.rows):
                device.shrink(lower, *pool.shrink(lower))
            shapes = device.shapes
            ran_out = device.ready()
            device.decode(pool, pool.enough(lower.rows if lower else 0))
            self._clock.enter(pool, BESIDE, ran_out)
            self._look(pool, grown, on_tokens)
            self._clock.enter(pool, DEVICE, ran_out=device.ready())
            rows, log = device.result()
            self._clock.enter(pool, HOST)
            if bool(log.bad):
                raise UserError(
                    "model: its logits hold NaN or infinity, so the weights or the adapter are "
                    "broken; load them anew or train with a lower learning rate."
                )
            self.stats.add(row_steps=int(log.steps) * shapes.rows)
            grown = pool.absorb(rows, log)
        self._look(pool, grown, on_tokens)

    def _finish(self, requests: Sequence[Request], pool: Pool) -> list[list[Completion]]:
        done = [[draft.done() for draft in drafts] for drafts in pool.drafts]
        self.stats.add(
            row_steps_useful=pool.useful_steps,
            prefill_tokens_naive=sum(len(r.prompt) * len(r.keys) for r in requests),
            completions=sum(map(len, done)),
            tokens_generated=sum(len(c.tokens) for drawn in done for c in drawn),
        )
        return done

    def _prefill(self, admissions: list[Admission], slots: int) -> Iterable[Fork | Extend]:
        for call in calls(admissions, slots, self._lanes, self._shards):
            if isinstance(call, Extend):
                self.stats.add(
                    prefill_tokens_computed=int(call.length.sum()),
                    prefill_tokens_padded=call.tokens.size,
                )
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


def _lower(rungs: Sequence[Shapes], shapes: Shapes) -> Shapes | None:
    """The next smaller shapes, if there are any."""
    at = rungs.index(shapes)
    return rungs[at - 1] if at else None


def _extent(mesh: Mesh | None, axis: str, size: int) -> int:
    """Into how many parts the mesh splits a logical axis of this size; 0: of any size."""
    if mesh is None:
        return 1
    parts = math.prod(mesh.shape.get(name, 1) for name in RULES[axis])
    return parts if size % parts == 0 else 1
