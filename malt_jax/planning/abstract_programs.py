"""The programs that a run compiles, with shapes and shardings in place of arrays.

The functions are the run's own; only their arguments are abstract. Depth is a parameter, because
layers are alike and a shallow program shows what a deep one costs (see `compiler`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from malt_jax.config.run import Config
from malt_jax.config.training import PhaseConfig
from malt_jax.data.packing import lay
from malt_jax.models.hf_names import source_of
from malt_jax.models.lora import Adapter, adapter_shardings, init_adapter
from malt_jax.models.mesh import rules
from malt_jax.models.quantized import QuantizedMatrix
from malt_jax.models.sharding import AnyMesh, mesh_parts, named
from malt_jax.models.spec import ModelSpec
from malt_jax.models.weights import abstract_params, layout
from malt_jax.planning.sizes import Sizes
from malt_jax.planning.training_steps import largest
from malt_jax.planning.typical_rows import kernel_bytes
from malt_jax.progress import counted
from malt_jax.sampling import cache, decode, device, memory
from malt_jax.sampling.attention import Chunks
from malt_jax.sampling.attention_choice import choose_attention
from malt_jax.sampling.filters import Filters
from malt_jax.sampling.prefill import PrefillCall, Weights, copies_per_call, prefill
from malt_jax.sampling.request import MAX_END_IDS
from malt_jax.training import step as training
from malt_jax.training.objectives import Batch
from malt_jax.training.placement import state_shardings
from malt_jax.training.plan import Plan

Kind = Literal["sampling", "sft", "dpo", "kto", "pg"]
"""Which fields of the config decide a program's memory."""
LATER: tuple[Kind, ...] = ("dpo", "kto", "pg")
"""The phases that compare a policy with the one that they start from."""
Call = tuple[Callable, tuple[Any, ...]]
"""A function to trace, and its abstract arguments."""


@dataclass(frozen=True)
class AbstractProgram:
    """One program of a run; `build(depth)` makes it for a model of so many layers."""

    name: str
    kind: Kind
    shape: str
    """What one call computes, in words."""
    build: Callable[[int], Call]
    # Arguments whose buffers outputs take over, as in the run. Without this, the caches and the
    # training state would be counted twice.
    donate: tuple[int, ...]
    resident: int = 0
    """Bytes that a device holds meanwhile and that are no argument."""
    kernel_bytes: Callable[[int], int] | None = None
    """Bytes that its kernels move at a depth, which no compiler counts; None: it has none."""
    scanned: bool = False
    """Whether it is a loop over the layers, so that it compiles as fast with all of them."""
    options: Mapping[str, dict[str, str | bool]] = field(default_factory=dict)
    """The run's own compiler options, by platform."""


def run_programs(
    config: Config, spec: ModelSpec, sizes: Sizes, platform: str, mesh: AnyMesh
) -> list[AbstractProgram]:
    """Copies of shared prefixes, prefill, decode, the two training steps and the reference pass.

    The evaluation runs those of the search.
    """
    make = _Arguments(config, spec, sizes, platform, mesh)
    return [*_sampling(make), *_training(make)]


def _sampling(make: _Arguments) -> Iterator[AbstractProgram]:
    shapes, calls, suffix = make.sizes.shapes, make.sizes.prefill, device_bytes(make.suffix())
    sampled, given, rounded = make.sampled_bytes(), make.weight_bytes(), make.rounded_bytes()
    # On a CPU several streams have caches of their own. Where the sampler reads rounded kernels,
    # those that they were made from lie beside them.
    base = make.other_caches() + given - (sampled - rounded)
    if make.config.train.full:
        # The evaluation holds one role's fully trained weights beside those of the base model.
        base += given + rounded
    words = counted(make.copies, "shared prefix", "shared prefixes")
    # While prefixes are written, the suffix caches of decoding lie on the device as well.
    options = device.COMPILER_OPTIONS
    yield AbstractProgram(
        "copy", "sampling", words, make.copy, (0,), suffix + sampled + base, options=options
    )
    for count in calls.counts:
        words = f"{count} x {calls.tokens} tokens of prompts"
        build = partial(make.extend, count)
        yield AbstractProgram(
            prefill_name(count), "sampling", words, build, (0,), suffix + base, options=options
        )
    words = f"{shapes.rows} rows, {shapes.entries} prompts of {shapes.prefix_tokens}"
    words = f"{words}, {shapes.new_tokens} new"
    kernel = make.kernel_bytes if make.attention.layout is cache.JoinedKV else None
    yield AbstractProgram(
        "decode", "sampling", words, make.decode, (2,), base, kernel, options=options
    )


def prefill_name(prompts: int) -> str:
    return f"prefill {prompts}"


def _training(make: _Arguments) -> Iterator[AbstractProgram]:
    train, sizes = make.config.train, make.sizes
    # Full fine-tuning leaves the base model where it is, beside the weights that are trained, and
    # the phases after SFT also the weights that they start from, which are their reference.
    base = make.weight_bytes() if train.full else 0
    # The sampler's rounded copy stays for the next search or evaluation.
    base += make.rounded_bytes()
    start = device_bytes(make.masters()) if train.full else 0
    kinds: dict[Kind, int] = {"sft": base, **dict.fromkeys(LATER, base + start)}
    scanned = make.spec.stacks_layers
    for kind, resident in kinds.items():
        if plan := sizes.steps.get(kind):
            build = partial(make.train_step, train.phase(kind), plan)
            yield AbstractProgram(
                f"{kind} step", kind, _words(plan), build, (0,), resident,
                scanned=scanned, options=training.COMPILER_OPTIONS,
            )  # fmt: skip
    for kind in LATER:
        if plan := sizes.steps.get(kind):
            build = partial(make.reference, train.phase(kind), plan)
            yield AbstractProgram(
                reference_name(kind), kind, _words(plan), build, (), base, scanned=scanned
            )


def reference_name(phase: str) -> str:
    """The program of a phase that scores its completions by the policy that it starts from."""
    return "reference" if phase == "dpo" else f"{phase} reference"


def _words(plan: Plan) -> str:
    shape = largest(plan)
    return f"{shape.rows} rows of {shape.time}"


@functools.cache
def abstract_structure(
    spec: ModelSpec, dtype: str, stacked: bool, quantize: str = "none"
) -> tuple[nnx.GraphDef, nnx.State]:
    """`abstract_params`, traced once for all programs of all settings that a plan tries."""
    return abstract_params(spec, dtype, stacked, quantize)


def parameters_on_mesh(
    config: Config,
    spec: ModelSpec,
    dtype: Any,
    mesh: AnyMesh,
    stacked: bool,
    quantize: str | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """The decoder's structure, and its parameters as they lie on the mesh.

    `stacked` is that of the whole model, since `spec` may be cut off; `quantize` as in
    `abstract_params`, by default the model's own.
    """
    name, quantize = jnp.dtype(dtype).name, quantize or config.model.quantize
    graph, abstract = abstract_structure(spec, name, stacked, quantize)
    placed: dict[tuple[Any, ...], Any] = {}
    flat: dict[tuple[Any, ...], Any] = dict(nnx.to_flat_state(abstract))
    for path, variable in flat.items():
        where = layout(variable, source_of(spec, path), mesh, rules(config.mesh))
        placed[path] = variable.replace(jax.tree.map(_on, variable.get_value(), where))
    return graph, nnx.from_flat_state(placed)


def kernel_copy_bytes(params: nnx.State) -> int:
    """Bytes on one device of the rounded matrices among a sampler's abstract weights."""
    values = (variable.get_value() for variable in dict(nnx.to_flat_state(params)).values())
    return sum(device_bytes(value) for value in values if isinstance(value, QuantizedMatrix))


def _on(shape: jax.ShapeDtypeStruct, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def device_bytes(tree: Any) -> int:
    """Bytes that abstract arrays take on one device."""

    def of(x: jax.ShapeDtypeStruct) -> int:
        # A device's own part: split dimensions are divided, the others are held whole.
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
        return math.prod(shape) * (4 if is_key else x.dtype.itemsize)

    return sum(map(of, jax.tree.leaves(tree)))


class _Arguments:
    """Abstract arguments of every program, for one config on one mesh."""

    def __init__(self, config: Config, spec: ModelSpec, sizes: Sizes, platform: str, mesh: AnyMesh):
        self.config, self.spec, self.sizes, self.mesh = config, spec, sizes, mesh
        self.platform, self.parts = platform, mesh_parts(mesh, "batch")
        self.attention = choose_attention(config.sampler.attention, platform, spec, sizes.dtype)

    @property
    def copies(self) -> int:
        """Shared prefixes that one call copies."""
        return copies_per_call(self.sizes.shapes.entries, self.parts)

    @property
    def has_copy(self) -> bool:
        """Whether the sampler has rounded weights of its own."""
        return self.config.sampler.weights == "int8"

    def weight_bytes(self) -> int:
        """Of the model as it is loaded."""
        return device_bytes(self._params(self.spec)[1])

    def sampled_bytes(self) -> int:
        """Of the weights that the sampler reads."""
        return device_bytes(self._sampled(self.spec)[1])

    def rounded_bytes(self) -> int:
        """Of those that are the sampler's own; it shares tables and norms with the model."""
        return kernel_copy_bytes(self._sampled(self.spec)[1]) if self.has_copy else 0

    def suffix(self, spec: ModelSpec | None = None) -> list[cache.Cache]:
        """Keys and values of new tokens."""
        return self._caches(spec or self.spec)[1]

    def other_caches(self) -> int:
        """Bytes of the caches of the streams beside the one that a program works for."""
        streams = memory.stream_count(self.config.sampler, self.platform, self.mesh.size > 1)
        return (streams - 1) * device_bytes(self._caches(self.spec))

    def masters(self) -> nnx.State:
        """The float32 weights of full fine-tuning."""
        return self._params(self.spec, jnp.float32)[1]

    def copy(self, depth: int) -> Call:
        numbers = self._array((self.copies,), jnp.int32)
        return cache.copy_entries, (self._prefix(self.spec.first_layers(depth)), numbers, numbers)

    def extend(self, prompts: int, depth: int) -> Call:
        spec = self.spec.first_layers(depth)
        graph, params = self._sampled(spec)
        one = self._array((prompts,), jnp.int32)
        tokens = self._array((prompts, self.sizes.prefill.tokens), jnp.int32)
        call = PrefillCall(tokens, Chunks(one, one, one), one)
        weights = Weights(params, self._adapter(spec))
        return partial(prefill, graph), (self._prefix(spec), weights, call)

    def decode(self, depth: int) -> Call:
        spec, shapes = self.spec.first_layers(depth), self.sizes.shapes
        graph, params = self._sampled(spec)
        # Each completion of each entry may wait at the same time (`Scheduler.queue`).
        queues = (self.parts, shapes.entries // self.parts * shapes.siblings)
        number, share = self._array((), jnp.int32), self._array((), jnp.float32)
        ends = self._array((MAX_END_IDS,), jnp.int32)
        params_of_draw = decode.ParamArrays(Filters(share, number, share), number, ends)
        inputs = decode.DecodeInputs(
            self._prefix(spec), self._rows(*queues), params_of_draw, number
        )
        weights = Weights(params, self._adapter(spec))
        steps = self.config.sampler.chunk_steps
        program = decode.DecodeProgram(graph, steps, shapes.siblings, self.attention)
        return partial(decode.decode, program), (
            weights, inputs, self.suffix(spec), self._rows(shapes.rows), number
        )  # fmt: skip

    def kernel_bytes(self, depth: int) -> int:
        shapes = self.sizes.shapes
        shard = replace(
            shapes, rows=shapes.rows // self.parts, entries=shapes.entries // self.parts
        )
        kv_heads = self.spec.kv_heads // memory.kv_shards(self.spec, self.mesh)
        spec, dtype = self.spec.first_layers(depth), self.sizes.dtype
        return kernel_bytes(spec, shard, dtype, self._cache_dtype, kv_heads)

    @property
    def _cache_dtype(self) -> Any:
        return memory.cache_dtype(self.config.sampler, self.sizes.dtype, self.platform)

    def train_step(self, phase: PhaseConfig, plan: Plan, depth: int) -> Call:
        spec = self.spec.first_layers(depth)
        program, trainable, frozen = self._trained(phase, spec)
        state = jax.eval_shape(partial(training.init_state, program), trainable)
        # `eval_shape` drops shardings, and those of the state follow from the weights'.
        where = jax.tree.map(lambda x: x.sharding, trainable)
        state = replace(state, trainable=_placed(state.trainable, where))
        state = _placed(state, state_shardings(program, state, spec, self.mesh))
        shape = largest(plan)
        kinds = {
            "step": self._array((), jnp.float32),
            "sequence": self._array((shape.rows, shape.sequences), jnp.float32, "batch"),
            "target": self._array((shape.rows, shape.targets), jnp.float32, "batch"),
        }
        batch = Batch(
            rows=self._packed(plan),
            reference=kinds["sequence"],
            total=kinds["step"],
            learning_rate=kinds["step"],
            last=self._array((), jnp.bool_),
            key=_key(),
            extra={name: kinds[of] for name, of in program.objective.reads.items()},
        )
        return partial(training.train_step, program), (state, frozen, batch)

    def reference(self, phase: PhaseConfig, plan: Plan, depth: int) -> Call:
        program, trainable, frozen = self._trained(phase, self.spec.first_layers(depth))
        function = partial(training.score_rows, training.scoring(program))
        return function, (trainable, frozen, self._packed(plan))

    def _trained(
        self, phase: PhaseConfig, spec: ModelSpec
    ) -> tuple[training.Program, training.Trainable, nnx.State | None]:
        """The step's static part, the weights that it trains, and the frozen ones."""
        graph, params = self._params(spec)
        dropout = self.config.train.lora.dropout
        program = training.make_program(graph, self.sizes.dtype, phase, dropout, self.platform)
        adapter = self._adapter(spec)
        if adapter is not None:
            return program, adapter, params
        return program, self._params(spec, jnp.float32)[1], None

    def _params(self, spec: ModelSpec, dtype: Any = None) -> tuple[nnx.GraphDef, nnx.State]:
        dtype, stacked = dtype or self.sizes.dtype, self.spec.stacks_layers
        return parameters_on_mesh(self.config, spec, dtype, self.mesh, stacked)

    def _sampled(self, spec: ModelSpec) -> tuple[nnx.GraphDef, nnx.State]:
        """As `_params`, of what the sampler reads."""
        stacked = self.spec.stacks_layers
        how = "kernels" if self.has_copy else None
        return parameters_on_mesh(self.config, spec, self.sizes.dtype, self.mesh, stacked, how)

    def _adapter(self, spec: ModelSpec) -> Adapter | None:
        if self.config.train.full:
            return None
        make = partial(init_adapter, spec, self.config.train.lora, stacked=self.spec.stacks_layers)
        adapter = jax.eval_shape(make, _key())
        return _placed(adapter, adapter_shardings(spec, adapter, self.mesh))

    def _rows(self, *shape: int) -> decode.Rows:
        number = self._array(shape, jnp.int32)
        key = self._array((*shape, 2), jnp.uint32)
        return decode.Rows(number, number, number, number, number, key)

    def _prefix(self, spec: ModelSpec) -> list[cache.Cache]:
        return self._caches(spec)[0]

    def _caches(self, spec: ModelSpec) -> Any:
        """The prefix caches and the suffix caches of all layers."""
        make = partial(cache.empty_caches, spec, self.sizes.shapes)
        empty = jax.eval_shape(lambda: make(self._cache_dtype, self.attention.layout))
        return jax.tree.map(lambda x: self._array(x.shape, x.dtype, "batch", "kv_heads"), empty)

    def _packed(self, plan: Plan) -> Any:
        # No segment is laid, but the arrays have the shapes and dtypes of a full micro-batch.
        rows = lay([], largest(plan))
        return jax.tree.map(lambda x: self._array(x.shape, x.dtype, "batch"), rows)

    def _array(self, shape: tuple[int, ...], dtype: Any, *axes: str) -> Any:
        """An abstract array whose first dimensions have these logical axes."""
        where = named(axes + (None,) * (len(shape) - len(axes)), shape, self.mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
