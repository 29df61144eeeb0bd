"""The programs a run compiles, with shapes and shardings in place of arrays.

The functions are the run's own; only what they are given is abstract. Depth is an argument, because
layers are alike and a shallow program tells what a deep one costs (see `compiler`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from malt_jax.config import Config
from malt_jax.data.packing import Segment, lay
from malt_jax.models.hf_names import source_of
from malt_jax.models.lora import Adapter, adapter_shardings, init_adapter
from malt_jax.models.mesh import rules
from malt_jax.models.sharding import RULES, AnyMesh, named
from malt_jax.models.spec import ModelSpec
from malt_jax.models.weights import abstract_params, layout
from malt_jax.planning.chips import Target
from malt_jax.planning.work import Work
from malt_jax.sampling import cache, memory, programs
from malt_jax.sampling.engine import ACCELERATOR_ROWS, BEST_ROWS, prefill_lanes
from malt_jax.sampling.memory import Shapes
from malt_jax.sampling.prefill import Lanes
from malt_jax.sampling.request import MAX_END_IDS
from malt_jax.training import step as training
from malt_jax.training.config import DpoConfig, SftConfig
from malt_jax.training.placement import row_devices, state_shardings
from malt_jax.training.plan import Plan, make_plan


@dataclass(frozen=True)
class Program:
    """One program: `build(depth)` gives a function to trace and its abstract arguments."""

    name: str
    shape: str
    """What it computes at once, in words."""
    build: Callable[[int], tuple[Callable, tuple[Any, ...]]]
    donate: tuple[int, ...]
    field: str
    """The config field that makes it smaller."""
    size: int
    """That field's value in it."""


@dataclass(frozen=True)
class Sizes:
    """Shapes chosen for the target, as the run chooses them."""

    dtype: Any
    shapes: Shapes
    """Of the sampler's caches, at the last role's typical prompt."""
    lanes: Lanes
    sft: Plan
    dpo: Plan
    sft_batch: int
    dpo_batch: int


def choose_sizes(
    config: Config, spec: ModelSpec, work: Work, target: Target, mesh: AnyMesh, weights: int
) -> Sizes:
    """Slots that fit beside `weights` bytes a device, and packed rows of a typical batch."""
    cpu = target.chip.platform == "cpu"
    name = config.model.dtype
    dtype = jnp.dtype(("float32" if cpu else "bfloat16") if name == "auto" else name)
    sampler, last = config.sampler, work.roles[-1]
    places = _bucket(sampler.prefix_buckets, round(1.25 * last.prompt))
    ring = _bucket(sampler.new_token_buckets, max(role.longest for role in work.roles))
    free = 0.8 * (target.chip.memory - weights) / 2**30 if target.chip.memory else 0.0
    shards, heads = (_parts(mesh, axis) for axis in ("slots", "kv_heads"))
    budget = memory.budget(
        spec,
        Shapes(1, sampler.width, places, ring),
        jnp.int8 if sampler.cache == "int8" else dtype,
        sampler.memory_gb or max(free, 0.05),
        shards,
        heads if spec.kv_heads % heads == 0 else 1,
    )
    rows = BEST_ROWS.get(target.chip.platform, ACCELERATOR_ROWS)
    wanted = sampler.slots or max(1, rows // sampler.width) * shards
    completions = min(config.search.block, work.train_questions) * (
        last.nodes // max(work.train_questions, 1)
    )
    slots = min(wanted, budget.slots)
    while slots > 1 and completions * 2 <= slots * sampler.width:
        slots = -(-slots // 4)
    slots = -(-slots // shards) * shards
    sft, dpo = (_rows(config, spec, work, phase, mesh, cpu) for phase in ("sft", "dpo"))
    return Sizes(
        dtype=dtype,
        shapes=Shapes(slots, sampler.width, places, ring),
        lanes=prefill_lanes(sampler, target.chip.platform),
        sft=sft,
        dpo=dpo,
        sft_batch=config.train.sft.batch_size,
        dpo_batch=config.train.dpo.batch_size,
    )


def run_programs(
    config: Config, spec: ModelSpec, sizes: Sizes, target: Target, mesh: AnyMesh
) -> list[Program]:
    """Prefill buckets, decode, the two training steps, and scoring for the reference."""
    make = _Abstract(config, spec, sizes, mesh)
    shapes, lanes = sizes.shapes, sizes.lanes
    found = [
        Program(
            f"prefill {count * lanes.tokens}",
            f"{count} lanes of {lanes.tokens} tokens",
            partial(make.extend, count, lanes.tokens),
            (2,),
            "sampler.slots",
            shapes.slots,
        )
        for count in lanes.counts
    ]
    rows = shapes.slots * shapes.width
    found.append(
        Program(
            "decode",
            f"{rows} rows, prompts of {shapes.places}, completions of {shapes.ring}",
            make.decode,
            (3,),
            "sampler.slots",
            shapes.slots,
        )
    )
    for name, phase, plan in (
        ("sft step", config.train.sft, sizes.sft),
        ("dpo step", config.train.dpo, sizes.dpo),
    ):
        shape = _largest(plan)
        found.append(
            Program(
                name,
                f"{shape.rows} rows of {shape.time}",
                partial(make.train, phase, plan, target.chip.platform),
                (0,),
                f"train.{name[:3]}.loop.micro_tokens",
                shape.rows * shape.time,
            )
        )
    shape = _largest(sizes.dpo)
    found.append(
        Program(
            "reference",
            f"{shape.rows} rows of {shape.time}",
            partial(make.score, config.train.dpo, sizes.dpo, target.chip.platform),
            (),
            "train.dpo.loop.micro_tokens",
            shape.rows * shape.time,
        )
    )
    return found


def weight_bytes(config: Config, spec: ModelSpec, dtype: Any, mesh: AnyMesh) -> int:
    """Bytes of the parameters on one device."""
    return device_bytes(_params(config, spec, dtype, mesh)[1])


def device_bytes(tree: Any) -> int:
    """Bytes that abstract arrays take on one device."""

    def of(x: jax.ShapeDtypeStruct) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return math.prod(shape) * (
            4 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) else x.dtype.itemsize
        )

    return sum(map(of, jax.tree.leaves(tree)))


class _Abstract:
    """Builds abstract arguments for one config on one mesh."""

    def __init__(self, config: Config, spec: ModelSpec, sizes: Sizes, mesh: AnyMesh):
        self.config, self.spec, self.sizes, self.mesh = config, spec, sizes, mesh

    def extend(self, lanes: int, tokens: int, depth: int) -> tuple[Callable, tuple[Any, ...]]:
        spec, shapes = _shallow(self.spec, depth), self.sizes.shapes
        graph, params = _params(self.config, spec, self.sizes.dtype, self.mesh)
        one = self._whole((lanes,), jnp.int32)
        call = (one, self._whole((lanes, tokens), jnp.int32), one, one)
        prefix = self._cache(spec, shapes.slots, shapes.places)
        return partial(programs.extend, graph), (params, self._adapter(spec), prefix, *call)

    def decode(self, depth: int) -> tuple[Callable, tuple[Any, ...]]:
        spec, shapes = _shallow(self.spec, depth), self.sizes.shapes
        graph, params = _params(self.config, spec, self.sizes.dtype, self.mesh)
        slots, width = shapes.slots, shapes.width
        queue = max(role.branch for role in self.config.pipeline.roles)
        ints, floats = (self._whole((slots,), t) for t in (jnp.int32, jnp.float32))
        row = self._whole((slots, width), jnp.int32)
        rows = programs.Rows(row, row, row, self._whole((slots, width, 2), jnp.uint32))
        keys = self._whole((slots, queue, 2), jnp.uint32)
        plan = programs.Slots(ints, ints, floats, ints, floats, ints, ints, ints, keys)
        number = self._whole((), jnp.int32)
        args = (
            params,
            self._adapter(spec),
            self._cache(spec, slots, shapes.places),
            self._cache(spec, slots * width, shapes.ring),
            rows,
            plan,
            self._whole((MAX_END_IDS,), jnp.int32),
            number,
            number,
        )
        return partial(programs.decode, graph, self.config.sampler.chunk_steps), args

    def train(
        self, phase: SftConfig | DpoConfig, plan: Plan, platform: str, depth: int
    ) -> tuple[Callable, tuple[Any, ...]]:
        spec = _shallow(self.spec, depth)
        program, params, trainable = self._trained(phase, platform, spec)
        state = jax.eval_shape(partial(training.init_state, program), trainable)
        masters = jax.tree.map(lambda x, like: _like(like, x.dtype), state.trainable, trainable)
        state = replace(state, trainable=masters)
        where = state_shardings(program, state, spec, self.mesh)
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
        )
        batch = training.Batch(
            rows=self._rows(plan),
            reference=self._batch(_sequences(plan), jnp.float32),
            total=self._whole((), jnp.float32),
            learning_rate=self._whole((), jnp.float32),
            last=self._whole((), jnp.bool_),
            key=jax.eval_shape(lambda: jax.random.key(0)),
        )
        frozen = None if self.config.train.full else params
        return partial(training.train_step, program), (state, frozen, batch)

    def score(
        self, phase: DpoConfig, plan: Plan, platform: str, depth: int
    ) -> tuple[Callable, tuple[Any, ...]]:
        spec = _shallow(self.spec, depth)
        program, params, trainable = self._trained(phase, platform, spec)
        frozen = None if self.config.train.full else params
        function = partial(training.score_rows, training.scoring(program))
        return function, (trainable, frozen, self._rows(plan))

    def _trained(
        self, phase: SftConfig | DpoConfig, platform: str, spec: ModelSpec
    ) -> tuple[training.Program, nnx.State, training.Trainable]:
        graph, params = _params(self.config, spec, self.sizes.dtype, self.mesh)
        dropout = self.config.train.lora.dropout
        program = training.make_program(graph, self.sizes.dtype, phase, dropout, platform)
        return program, params, params if self.config.train.full else self._adapter(spec)

    def _adapter(self, spec: ModelSpec) -> Adapter | None:
        if self.config.train.full:
            return None
        key = jax.eval_shape(lambda: jax.random.key(0))
        adapter = jax.eval_shape(partial(init_adapter, spec, self.config.train.lora), key)
        where = adapter_shardings(spec, adapter, self.mesh)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), adapter, where
        )

    def _cache(self, spec: ModelSpec, count: int, places: int) -> list[cache.KV]:
        dtype = jnp.int8 if self.config.sampler.cache == "int8" else self.sizes.dtype

        def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            axes = ("slots", "kv_heads", *[None] * (x.ndim - 2))
            where = named(axes, x.shape, self.mesh)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        empty = jax.eval_shape(lambda: cache.empty(spec, count, places, dtype))
        return jax.tree.map(place, empty)

    def _whole(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        where = NamedSharding(self.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def _batch(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        where = named(("batch",) + (None,) * (len(shape) - 1), shape, self.mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def _rows(self, plan: Plan) -> Any:
        rows = lay([], _largest(plan))
        return jax.tree.map(lambda x: self._batch(x.shape, x.dtype), rows)


def _like(x: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)


def _params(
    config: Config, spec: ModelSpec, dtype: Any, mesh: AnyMesh
) -> tuple[nnx.GraphDef, nnx.State]:
    graph, abstract = abstract_params(spec, dtype, stacked=False)
    placed = {}
    for path, variable in nnx.to_flat_state(abstract):
        shape = variable.get_value().shape
        where = layout(variable, source_of(spec, path), mesh, rules(config.mesh))
        placed[path] = variable.replace(jax.ShapeDtypeStruct(shape, dtype, sharding=where))
    return graph, nnx.from_flat_state(placed)


def _shallow(spec: ModelSpec, depth: int) -> ModelSpec:
    return replace(spec, num_layers=depth, windows=spec.windows[:depth])


def _rows(
    config: Config, spec: ModelSpec, work: Work, phase: str, mesh: AnyMesh, cpu: bool
) -> Plan:
    """The packing of one batch of the last role's examples, with lengths around their mean."""
    part = config.train.sft if phase == "sft" else config.train.dpo
    last, devices = work.roles[-1], row_devices(mesh)
    branches = 1 if phase == "sft" else 2

    def example(index: int) -> Segment:
        # Lengths from half to one and a half times the mean, the same for every plan.
        share = 0.5 + (index * 0.618) % 1.0
        completion = (0,) * max(1, min(round(share * last.completion), last.longest))
        room = part.loop.max_length - branches * len(completion)
        prompt = (0,) * max(1, min(last.prompt, room))
        numbers = tuple(range(branches * index, branches * (index + 1)))
        return Segment(prompt, (completion,) * branches, numbers)

    batch = list(map(example, range(part.batch_size)))
    tokens = part.loop.micro_tokens or (1024 if cpu else 16384 * devices)
    return make_plan([batch], spec, tokens, row_multiple=devices, row_length=part.loop.row_length)


def _largest(plan: Plan) -> Any:
    """The shape most tokens are computed in."""
    shapes = [micro.shape for step in plan.steps for micro in step]
    return max(shapes, key=lambda shape: (shape.rows * shape.time, shape.time))


def _sequences(plan: Plan) -> tuple[int, int]:
    shape = _largest(plan)
    return shape.rows, shape.sequences


def micro_batches(plan: Plan) -> Iterator[int]:
    """Tokens of each micro-batch of a typical step."""
    for step in plan.steps:
        for micro in step:
            yield micro.shape.rows * micro.shape.time


def _parts(mesh: AnyMesh, axis: str) -> int:
    return int(np.prod([mesh.shape.get(name, 1) for name in RULES[axis]]))


def _bucket(sizes: tuple[int, ...], need: int) -> int:
    return next((size for size in sizes if size >= need), sizes[-1])
