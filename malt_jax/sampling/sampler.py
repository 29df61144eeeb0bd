"""The sampler: many completions of many prompts, each prompt's keys and values computed once.

A call's prompts are grouped by length. Each group runs over a fixed number of prefix cache entries,
which hold prompts, and of rows, which decode: free entries are filled, rows decode for a few steps,
a row whose completion has ended takes the next one of any entry, and so on (`stream.py`).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from malt_jax.checks import check
from malt_jax.config.sampler import SamplerConfig
from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter
from malt_jax.models.quantized import with_int8_kernels
from malt_jax.models.sharding import mesh_parts, on_mesh
from malt_jax.sampling import memory
from malt_jax.sampling.attention_choice import choose_attention
from malt_jax.sampling.decode import DecodeProgram
from malt_jax.sampling.device import Device, Executables, use_cache_dir
from malt_jax.sampling.memory import CacheShape
from malt_jax.sampling.open_call import OpenCall
from malt_jax.sampling.prefill import Weights, padding_calls, prefill_shape
from malt_jax.sampling.request import Completion, Policy, Request, SamplingParams, ThoughtBudget
from malt_jax.sampling.scheduler import Scheduler
from malt_jax.sampling.stats import Activity, Stats, Timer
from malt_jax.sampling.stream import OnTokens, Stream

AdapterOrWeights = Adapter | nnx.State | None
"""What a call draws with: an adapter over the model, whole weights in its place, or the model."""

Plan = tuple[list[CacheShape], memory.MemoryPlan]
"""The cache shapes of a stream, rising, and what they take."""
LONGEST_WAIT = 0.5
"""Seconds of one wait of the main thread, which handles the signals of the process. A signal that
another thread receives, or that comes just before a wait begins, does not end that wait."""


class Sampler:
    """Draws completions from one model; other adapters and parameters compile nothing new."""

    def __init__(
        self,
        model: Any,
        config: SamplerConfig | None = None,
        mesh: Mesh | None = None,
        on_chunk: Callable[[], None] = lambda: None,
        stats: Stats | None = None,
    ):
        """`on_chunk` is called between two chunks of decode steps; what it raises ends the call.

        `stats`: those of another sampler, to which this one adds.
        """
        self._on_chunk = on_chunk
        self.config = config or SamplerConfig()
        self.model, self.spec, self.mesh = model, model.spec, mesh
        check(
            mesh is None or self.config.streams <= 1,
            f"sampler.streams: found {self.config.streams}, allowed: 1 (or 0) on several devices, "
            "which must be given their work in one order; leave it out.",
        )
        self.stats = stats or Stats()
        use_cache_dir(self.config.cache_dir)
        self._executables, self._timer = Executables(self.stats), Timer(self.stats)
        self._platform = jax.default_backend()
        self._best_rows = memory.best_rows(self._platform)
        self.streams = memory.stream_count(self.config, self._platform, mesh is not None)
        """Batches that may decode side by side."""
        self._shards = mesh_parts(mesh, "batch")
        self._prefill_shape = prefill_shape(self.config, self._platform, self._shards)
        self._rounded_params = (
            with_int8_kernels(model.params) if self.config.weights == "int8" else None
        )
        self.dtype = model.dtype
        """Dtype of weights and activations."""
        self._attention = choose_attention(
            self.config.attention, self._platform, self.spec, self.dtype
        )
        self.cache_dtype = memory.cache_dtype(self.config, self.dtype, self._platform)

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        adapter: AdapterOrWeights = None,
        on_tokens: OnTokens | None = None,
        siblings: int = 0,
    ) -> list[list[Completion]]:
        """One completion per key of every request, in their order.

        `siblings`: how many keys requests have by and large, so that calls with other numbers of
        keys share their programs; 0: as in this call. `on_tokens` is called as tokens come; such a
        call runs in one stream.

        The result depends on prompts, keys, parameters and weights, not on the order of the
        requests or on what else is in the call. Raises UserError for a request that cannot be
        served.
        """
        self.check(requests, params)
        adapter = self.in_model_dtype(adapter)
        done: list[list[Completion]] = [[] for _ in requests]
        stop = threading.Event()

        def run(members: Sequence[int], plan: Plan) -> None:
            hook = on_tokens and (lambda i, j, new: on_tokens(members[i], j, new))
            chosen = [requests[i] for i in members]
            with on_mesh(self.mesh):
                drawn = self._run(chosen, params, adapter, plan, hook, stop)
            for i, completions in zip(members, drawn, strict=False):  # none if it was stopped
                done[i] = completions

        def planned(group: Sequence[int]) -> Plan:
            # All streams of a group have the same shapes, so that they share their programs.
            completions = sum(len(requests[i].keys) for i in group)
            return self.plan(
                max(len(requests[i].prompt) for i in group),
                params.max_new_tokens,
                siblings or max(1, -(-completions // len(group))),
            )

        groups = self._groups(requests)
        if len(groups) > 1:
            planned(groups[-1])  # refused now if it does not fit, and not after the shorter ones
        for group in groups:
            plan = planned(group)
            shares = self._split(group, requests) if on_tokens is None else [group]
            if len(shares) == 1:
                run(group, plan)
                continue
            with ThreadPoolExecutor(len(shares)) as threads:
                futures = [threads.submit(run, share, plan) for share in shares]
                try:
                    pending = set(futures)
                    while pending:
                        finished, pending = wait(pending, LONGEST_WAIT, FIRST_EXCEPTION)
                        for future in finished:
                            future.result()
                except BaseException:  # also Ctrl-C: the other streams must not work for nothing
                    stop.set()
                    raise
        return done

    def open(self, policies: Sequence[Policy], prompt_tokens: int, siblings: int = 1) -> OpenCall:
        """A call that takes further requests while it runs; see `OpenCall`.

        `prompt_tokens`: the longest prompt to be expected; longer ones are drawn last.
        """
        return OpenCall(self, policies, prompt_tokens, siblings)

    def _groups(self, requests: Sequence[Request]) -> list[list[int]]:
        """Requests by prompt capacity; a group too small to keep the rows busy joins the next."""
        groups: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            capacity = self._prefix_tokens(len(request.prompt))
            groups.setdefault(capacity, []).append(index)
        for capacity, larger in pairwise(sorted(groups)):
            completions = sum(len(requests[i].keys) for i in groups[capacity])
            if completions < memory.least_group(self._platform):
                groups[larger] += groups.pop(capacity)
        return [groups[capacity] for capacity in sorted(groups)]

    def _split(self, group: list[int], requests: Sequence[Request]) -> list[list[int]]:
        """One share of a group per stream, if each gets half of the platform's best batch.

        A stream takes neighbours in the order of their tokens, so that they share their prefixes,
        and of each kind of prompt its part, so that all streams end at about one time.
        """
        completions = sum(len(requests[i].keys) for i in group)
        worth = max(1, 2 * completions // self._best_rows)
        count = min(self.streams, worth, len(group))
        if count == 1:
            return [group]
        kinds: dict[str, list[int]] = defaultdict(list)
        for index in sorted(group, key=lambda i: requests[i].prompt):
            kinds[requests[index].kind].append(index)
        shares: list[list[int]] = [[] for _ in range(count)]
        for order in kinds.values():
            cuts = [len(order) * k // count for k in range(count + 1)]
            for share, (first, end) in zip(shares, pairwise(cuts), strict=True):
                share += order[first:end]
        return [share for share in shares if share]

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raises UserError for a request that cannot be served."""
        for index, request in enumerate(requests):
            length = len(request.prompt)
            if not length:
                raise UserError(f"request {index}: the prompt is empty; give at least one token.")
            if request.keys.ndim != 2 or request.keys.shape[1] != 2:
                raise UserError(
                    f"request {index}: keys have shape {request.keys.shape}, allowed: (n, 2)."
                )
            if length + params.max_new_tokens > self.spec.context:
                raise UserError(
                    f"request {index}: a prompt of {length} tokens and max_new_tokens "
                    f"{params.max_new_tokens} exceed the model's context of {self.spec.context}; "
                    "shorten one of them."
                )
            if min(request.prompt) < 0 or max(request.prompt) >= self.spec.vocab:
                raise UserError(
                    f"request {index}: a token id is outside the vocabulary, 0 to "
                    f"{self.spec.vocab - 1}; the prompt was made with another tokenizer."
                )

    def shapes(self, prompt_tokens: int, new_tokens: int, siblings: int = 1) -> list[CacheShape]:
        """The cache shapes of a stream for prompts and completions up to these lengths, rising.

        `siblings`: completions per prompt. Raises UserError with what would fit when they do not.
        """
        return self.plan(prompt_tokens, new_tokens, siblings)[0]

    def _prefix_tokens(self, prompt_tokens: int) -> int:
        """Tokens that an entry for such a prompt holds; it needs all but the last."""
        need = max(1, prompt_tokens - 1)
        return memory.bucket(self.config.prefix_buckets, need, self._attention.block)

    def plan(self, prompt_tokens: int, new_tokens: int, siblings: int) -> Plan:
        """The cache shapes of a stream for these lengths, and the memory that they need."""
        # Weights that take turns on the device must lie on it before free memory is measured.
        _ = self.params
        attention = self._attention
        one = CacheShape(
            rows=1,
            entries=1,
            siblings=memory.siblings_per_entry(siblings, attention.width(self.config.width)),
            prefix_tokens=self._prefix_tokens(prompt_tokens),
            new_tokens=memory.bucket(self.config.new_token_buckets, new_tokens, attention.block),
        )
        devices = memory.Devices(
            self._platform,
            shards=self._shards,
            kv_shards=memory.kv_shards(self.spec, self.mesh),
            streams=self.streams,
        )
        return memory.plan_shapes(self.spec, one, self.cache_dtype, self.config, devices)

    def device(self, shape: CacheShape, adapter: AdapterOrWeights = None) -> Device:
        """A Device with empty caches of this shape and programs for `adapter`."""
        if isinstance(adapter, nnx.State):
            weights = Weights(self._rounded(adapter), None)
        else:
            weights = Weights(self.params, adapter)
        program = DecodeProgram(
            self.model.graph, self.config.chunk_steps, shape.siblings, self._attention
        )
        return Device(self._executables, program, weights, self.spec, self.cache_dtype, shape)

    def in_model_dtype(self, adapter: AdapterOrWeights) -> AdapterOrWeights:
        """Full weights as the programs take them; training keeps them as float32 masters."""
        if not isinstance(adapter, nnx.State) or adapter["embed"][...].dtype == self.dtype:
            return adapter
        # No stream has begun, so the device is at rest and it is safe to compile (see `device`).
        return jax.block_until_ready(jax.tree.map(lambda x: x.astype(self.dtype), adapter))

    def replicated(self, adapter: Adapter) -> Adapter:
        """The adapter with every array that one device holds on all devices of the mesh."""
        if self.mesh is None:
            return adapter
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        alone = lambda x: len(x.sharding.device_set) == 1  # noqa: E731
        return jax.tree.map(
            lambda x: jax.device_put(np.asarray(x), everywhere) if alone(x) else x, adapter
        )

    @property
    def params(self) -> Any:
        # Asked of the model in every call, since it may take turns with others on the device.
        return self.model.params if self._rounded_params is None else self._rounded_params

    def _rounded(self, params: Any) -> Any:
        return with_int8_kernels(params) if self.config.weights == "int8" else params

    def warm_up(
        self,
        prompt_tokens: int,
        new_tokens: int,
        siblings: int = 1,
        adapter: AdapterOrWeights = None,
        thought: ThoughtBudget | None = None,
    ) -> int:
        """Compiles what calls with prompts and completions up to these lengths can need.

        Returns the number of executables there are then; such calls add none. For each shape there
        are a program that empties the caches and a decode program, between neighbouring shapes one
        that resizes, and for each distinct number of prefix cache entries one that copies and one
        prefill program for each size of its calls. Each prompt capacity, each number of siblings
        that share an entry, and calls with and without adapter or thought budget have their own.
        """
        shapes = self.shapes(prompt_tokens, new_tokens, siblings)
        for smaller, shape in zip([None, *shapes], shapes, strict=False):
            with on_mesh(self.mesh):
                device = self.device(shape, adapter)
                nothing = Scheduler([], SamplingParams(thought=thought), shape, self._shards)
                for call in padding_calls(shape.entries, self._prefill_shape, self._shards):
                    device.prefill(call)
                device.decode(nothing, idle_limit=0)
                if smaller:
                    device.resize(smaller, *nothing.resize(smaller))
        return self.stats.executables

    def stream(
        self,
        requests: Sequence[Request],
        params: Sequence[SamplingParams],
        adapter: AdapterOrWeights,
        plan: Plan,
        on_tokens: OnTokens | None = None,
        apart: bool = False,
    ) -> Stream:
        """A stream that begins with these requests; `apart`: see `Scheduler`."""
        shapes, sizes = plan
        shape = memory.first_shape(shapes, sum(len(r.keys) for r in requests))
        held = sizes.held(-(-shape.rows // self._shards), -(-shape.entries // self._shards))
        self.stats.cache_bytes = max(self.stats.cache_bytes, held * self.streams)
        scheduler = Scheduler(requests, params, shape, self._shards, apart)
        device = self.device(shape, adapter)
        self._timer.enter(scheduler, Activity.DEVICE)
        return Stream(
            scheduler,
            device,
            shapes,
            self._prefill_shape,
            self.stats,
            self._timer,
            self.model.tokenizer,
            self._on_chunk,
            on_tokens,
        )

    def _run(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        adapter: AdapterOrWeights,
        plan: Plan,
        on_tokens: OnTokens | None,
        stop: threading.Event,
    ) -> list[list[Completion]]:
        """One stream's completions of a group of requests; nothing if another stream failed."""
        stream = self.stream(requests, [params], adapter, plan, on_tokens)
        scheduler = stream.scheduler
        try:
            while not stream.finished and not stop.is_set():
                stream.begin()
                stream.publish()
                stream.end()
            stream.publish()
        finally:
            stream.enter(None)
        if stop.is_set():
            return []
        done = scheduler.results()
        self.stats.add(
            row_steps_useful=scheduler.useful_steps,
            prefill_tokens_naive=sum(len(r.prompt) * len(r.keys) for r in requests),
            completions=sum(map(len, done)),
            tokens_generated=sum(len(c.tokens) for drawn in done for c in drawn),
        )
        return done


def samplers_of(model: Any | Mapping[str, Any]) -> Sampler | dict[str, Sampler]:
    """A sampler of the model; of models by role one for each, which roles of one model share."""
    if not isinstance(model, Mapping):
        return Sampler(model)
    made = {id(one): Sampler(one) for one in model.values()}
    return {role: made[id(one)] for role, one in model.items()}
