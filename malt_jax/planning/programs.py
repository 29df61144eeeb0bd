"""The programs a run compiles, with shapes and shardings in place of arrays.

The functions are the run's own; only what they are given is abstract. Depth is an argument, because
layers are alike and a shallow program tells what a deep one costs (see `compiler`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from malt_jax.config.run import Config
from malt_jax.config.training import DpoConfig, SftConfig
from malt_jax.data.packing import lay
from malt_jax.models.hf_names import source_of
from malt_jax.models.lora import Adapter, adapter_shardings, init_adapter
from malt_jax.models.mesh import rules
from malt_jax.models.sharding import RULES, AnyMesh, named
from malt_jax.models.spec import ModelSpec
from malt_jax.models.weights import abstract_params, layout
from malt_jax.planning.sizes import Sizes, largest
from malt_jax.progress import counted
from malt_jax.sampling import cache, decode
from malt_jax.sampling.attention import DECODE_ATTENTION, Chunks
from malt_jax.sampling.filters import Filters
from malt_jax.sampling.prefill import PrefillCall, Weights, copies_per_call, prefill
from malt_jax.sampling.request import MAX_END_IDS
from malt_jax.training import step as training
from malt_jax.training.placement import state_shardings
from malt_jax.training.plan import Plan

Kind = Literal["sampling", "sft", "dpo"]
"""Which fields of the config a program's memory follows from."""


@dataclass(frozen=True)
class Program:
    """One program: `build(depth)` gives a function to trace and its abstract arguments."""

    name: str
    kind: Kind
    shape: str
    """What it computes at once, in words."""
    build: Callable[[int], tuple[Callable, tuple[Any, ...]]]
    donate: tuple[int, ...]
    resident: int = 0
    """Bytes a device holds meanwhile that are no argument."""


def run_programs(
    config: Config, spec: ModelSpec, sizes: Sizes, platform: str, mesh: AnyMesh
) -> list[Program]:
    """Copying heads, prefill calls, decode, the two training steps, and scoring for the reference.

    The evaluation runs those of the search.
    """
    make = _Abstract(config, spec, sizes, mesh)
    return [*_sampling(make), *_training(make, platform)]


def _sampling(make: _Abstract) -> Iterator[Program]:
    shapes, lanes = make.sizes.shapes, make.sizes.lanes
    suffix = make.suffix_bytes
    weights = weight_bytes(make.config, make.spec, make.sizes.dtype, make.mesh)
    words = f"{counted(make.heads, 'head')} of prompts"
    yield Program("fork", "sampling", words, make.fork, (0,), suffix + weights)
    for count in lanes.counts:
        words = f"{count} x {lanes.tokens} tokens of prompts"
        name = prefill_name(count)
        yield Program(name, "sampling", words, partial(make.extend, count), (0,), suffix)
    words = f"{shapes.rows} rows, {shapes.entries} prompts of {shapes.prefix_tokens}"
    words = f"{words}, {shapes.new_tokens} new"
    yield Program("decode", "sampling", words, make.decode, (2,))


def prefill_name(lanes: int) -> str:
    return f"prefill {lanes}"


def _training(make: _Abstract, platform: str) -> Iterator[Program]:
    train, sizes = make.config.train, make.sizes
    # Full fine-tuning leaves the base where it is, beside the weights that are trained.
    base = weight_bytes(make.config, make.spec, sizes.dtype, make.mesh) if train.full else 0
    phases: list[tuple[Kind, SftConfig | DpoConfig, Plan]] = [
        ("sft", train.sft, sizes.sft),
        ("dpo", train.dpo, sizes.dpo),
    ]
    for kind, phase, plan in phases:
        build = partial(make.train, phase, plan, platform)
        yield Program(f"{kind} step", kind, _words(plan), build, (0,), base)
    build = partial(make.score, train.dpo, sizes.dpo, platform)
    yield Program("reference", "dpo", _words(sizes.dpo), build, (), base)


def _words(plan: Plan) -> str:
    shape = largest(plan)
    return f"{shape.rows} rows of {shape.time}"


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

    @property
    def heads(self) -> int:
        """Prompts' heads that one call copies."""
        return copies_per_call(self.sizes.shapes.entries, self._parts)

    @property
    def _parts(self) -> int:
        """Parts of the mesh that slots and rows are split over."""
        return math.prod(self.mesh.shape.get(name, 1) for name in RULES["batch"])

    @property
    def suffix_bytes(self) -> int:
        """Of the rows' caches on one device."""
        return device_bytes(self._suffix(self.spec))

    def fork(self, depth: int) -> tuple[Callable, tuple[Any, ...]]:
        numbers = self._whole((self.heads,), jnp.int32)
        return cache.copy_entries, (self._prefix(_shallow(self.spec, depth)), numbers, numbers)

    def extend(self, lanes: int, depth: int) -> tuple[Callable, tuple[Any, ...]]:
        spec = _shallow(self.spec, depth)
        graph, params = _params(self.config, spec, self.sizes.dtype, self.mesh)
        one = self._whole((lanes,), jnp.int32)
        tokens = self._whole((lanes, self.sizes.lanes.tokens), jnp.int32)
        call = PrefillCall(tokens, Chunks(one, one, one))
        args = (self._prefix(spec), Weights(params, self._adapter(spec)), call)
        return partial(prefill, graph), args

    def decode(self, depth: int) -> tuple[Callable, tuple[Any, ...]]:
        spec, shapes = _shallow(self.spec, depth), self.sizes.shapes
        graph, params = _params(self.config, spec, self.sizes.dtype, self.mesh)
        queues = (self._parts, shapes.entries // self._parts * shapes.siblings)
        number, share = self._whole((), jnp.int32), self._whole((), jnp.float32)
        ends = self._whole((MAX_END_IDS,), jnp.int32)
        drawn = decode.ParamArrays(Filters(share, number, share), number, ends)
        inputs = decode.DecodeInputs(self._prefix(spec), self._rows_of(*queues), drawn, number)
        weights, rows = Weights(params, self._adapter(spec)), self._rows_of(shapes.rows)
        args = (weights, inputs, self._suffix(spec), rows, number)
        sampler = self.config.sampler
        attention = DECODE_ATTENTION[sampler.attention]
        program = decode.DecodeProgram(graph, sampler.chunk_steps, shapes.siblings, attention)
        return partial(decode.decode, program), args

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
        shape = largest(plan)
        batch = training.Batch(
            rows=self._rows(plan),
            reference=self._batch((shape.rows, shape.sequences), jnp.float32),
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

    def _rows_of(self, *shape: int) -> decode.Rows:
        number = self._whole(shape, jnp.int32)
        key = self._whole((*shape, 2), jnp.uint32)
        return decode.Rows(number, number, number, number, number, key)

    def _prefix(self, spec: ModelSpec) -> list[cache.KV]:
        return self._caches(spec)[0]

    def _suffix(self, spec: ModelSpec) -> list[cache.KV]:
        return self._caches(spec)[1]

    def _caches(self, spec: ModelSpec) -> Any:
        dtype = jnp.int8 if self.config.sampler.cache == "int8" else self.sizes.dtype

        def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            axes = ("batch", "kv_heads", *[None] * (x.ndim - 2))
            where = named(axes, x.shape, self.mesh)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        empty = jax.eval_shape(lambda: cache.empty_caches(spec, self.sizes.shapes, dtype))
        return jax.tree.map(place, empty)

    def _whole(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        where = NamedSharding(self.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def _batch(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        where = named(("batch",) + (None,) * (len(shape) - 1), shape, self.mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def _rows(self, plan: Plan) -> Any:
        rows = lay([], largest(plan))
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
