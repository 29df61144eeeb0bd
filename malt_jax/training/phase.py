"""One phase of training, whatever its objective: admitted examples, plans, and the run on them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Generic, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from malt_jax.config.training import PgConfig, PhaseConfig, SftConfig
from malt_jax.data.examples import DpoExample, E
from malt_jax.data.packing import PackedRows, Segment, share_prompts
from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter
from malt_jax.models.quantized import weights_dtype
from malt_jax.models.spec import ModelSpec
from malt_jax.training.balance import expert_balance
from malt_jax.training.dataset import admit, digest, epoch_order, segment, split
from malt_jax.training.loop import Extra, Job, OnStep, TrainOutcome, run
from malt_jax.training.optim import learning_rates
from malt_jax.training.placement import plan_on
from malt_jax.training.plan import Plan
from malt_jax.training.references import finite, reference_key, weights_hash
from malt_jax.training.saver import MemorySaver, Saver
from malt_jax.training.scoring import mean_divergence, score_plan, score_tokens
from malt_jax.training.step import Program, Trainable, make_program, scoring

MEASURED_TOKENS = 4096
"""A trained policy's divergence from its start is measured on batches until so many tokens, with
padding, went through both. On a CPU more costs as much as a good part of a small phase."""


@runtime_checkable
class BaseModel(Protocol):
    """What training needs of a `models.model.Model`."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def graph(self) -> nnx.GraphDef: ...

    @property
    def params(self) -> nnx.State: ...

    @property
    def fingerprint(self) -> str: ...


class Phase(Generic[E]):
    """The examples that a phase admits, with the plans to train and to measure on them."""

    def __init__(
        self,
        model: BaseModel,
        start: Trainable,
        examples: Sequence[E],
        config: PhaseConfig,
        *,
        saver: Saver | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
        mesh: Mesh | None = None,
    ):
        self.model, self.start, self.config = model, start, config
        self.saver = MemorySaver() if saver is None else saver
        self.seed, self.on_step, self.mesh = seed, on_step, mesh
        loop = config.loop
        self.examples: list[E]
        self.examples, self.counts = admit(examples, loop.max_length)
        train, self.held = split(self.examples, loop.held_out, seed)
        if loop.steps and len(train) > loop.steps * config.batch_size:
            train = self._keep(self._order(train, 0)[: loop.steps * config.batch_size])
        self.counts |= {"trained": len(train), "held_out": len(self.held)}
        if not train:
            raise UserError(
                f"no example to train on is left of {len(examples)}: {self.counts}; `no_room` and "
                f"`too_long` do not fit loop.max_length: {loop.max_length}."
            )
        # The learning rate runs through all epochs without a break. Batches do not cross epochs, so
        # each epoch has the same number of them, but the last one may end early.
        self.epoch_steps = math.ceil(len(train) / config.batch_size)
        steps = loop.steps or config.epochs * self.epoch_steps
        self.batches: list[list[int]] = []
        for epoch in range(math.ceil(steps / self.epoch_steps)):
            order, size = self._order(train, epoch), config.batch_size
            self.batches += [order[i : i + size] for i in range(0, len(order), size)]
        self.batches = self.batches[:steps]
        self.plan = self._plan_examples(self.batches)
        self.held_plan = self._plan_examples([self.held] if self.held else [])

    def train(
        self,
        *,
        counts: Callable[[E], float],
        held_out: Callable[[Trainable], dict[str, float]],
        dropout: float = 0.0,
        references: np.ndarray | None = None,
        extra: Extra = lambda step, rows: {},
        before_step: Callable[[int, Trainable], dict[str, Any]] | None = None,
        first: tuple[str, float] | None = None,
        measured: dict[str, float] | None = None,
    ) -> TrainOutcome:
        """Trains; `counts` says how much an example counts in the batch's mean.

        `measured` is what the caller knows of the start. The other arguments are those of a `Job`.
        """
        config, start, program = self.config, self.start, self._program(dropout)
        # Everything that the result of a later step depends on. The mesh is not part of it, so a
        # phase may continue on other devices.
        described = json.dumps(
            [asdict(config), self.seed, dropout, digest(self.examples), self.model.fingerprint],
            sort_keys=True,
        )
        identity = hashlib.sha256((described + weights_hash(start)).encode()).hexdigest()

        def at_end(trained: Trainable) -> dict[str, float]:
            moved = {**(measured or {}), "kl_from_start": self._divergence(trained)}
            return moved | expert_balance(self.model, trained, self.examples, self.mesh)

        if references is None:
            # Every batch has a place for the reference's log-probability of each sequence.
            references = np.zeros(self.sequences, np.float32)
        job = Job(
            program=program,
            spec=self.model.spec,
            frozen=self._frozen(start),
            plan=self.plan,
            ids=tuple(tuple(self.examples[i].id for i in batch) for batch in self.batches),
            totals=tuple(
                float(sum(counts(self.examples[i]) for i in batch)) for batch in self.batches
            ),
            rates=learning_rates(config.optim, len(self.batches)),
            references=references,
            extra=extra,
            before_step=before_step,
            held_out=held_out if self.held else None,
            at_end=at_end,
            first=first,
            config=config.loop,
            saver=self.saver,
            seed=self.seed,
            identity=identity,
            mesh=self.mesh,
        )
        return replace(run(job, start, self.on_step), counts=self.counts)

    @property
    def sequences(self) -> int:
        """Completions of all admitted examples."""
        return sum(len(example.completions) for example in self.examples)

    def _order(self, train: Sequence[int], epoch: int) -> list[int]:
        """The order of the training examples in one epoch."""
        chosen = [self.examples[i] for i in train]
        order = epoch_order(chosen, self.seed, epoch, siblings_together=_together(self.config))
        # `epoch_order` numbers the training examples; the plans number all of the phase's.
        return [train[i] for i in order]

    def _keep(self, train: Sequence[int]) -> list[int]:
        """Leaves out the examples that no step would reach; returns those to train on."""
        kept = sorted([*train, *self.held])
        self.counts["unused"] = len(self.examples) - len(kept)
        self.examples = [self.examples[i] for i in kept]
        place = {old: new for new, old in enumerate(kept)}
        self.held = [place[i] for i in self.held]
        return sorted(place[i] for i in train)

    @property
    def every_example(self) -> Plan:
        """All examples once, in rows that the first epoch repeats."""
        # The first epoch and the held-out examples together hold every example once.
        first_epoch = self.plan.steps[: self.epoch_steps]
        return Plan(first_epoch + self.held_plan.steps)

    def score(
        self,
        weights: Trainable,
        plan: Plan,
        sequences: int | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability and length of the plan's completions, by their number; NaN for others.

        `sequences`: how many there are; by default those of the examples.
        """
        count = self.sequences if sequences is None else sequences
        frozen = self._frozen(weights)
        return score_plan(self.scoring, weights, frozen, plan, count, self.mesh, on_batch)

    def score_tokens(
        self, weights: Trainable, plan: Plan, on_batch: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """Log-probability of every completion token, one completion after the other."""
        lengths = [len(ids) for example in self.examples for ids in example.completions]
        frozen = self._frozen(weights)
        return score_tokens(self.scoring, weights, frozen, plan, lengths, self.mesh, on_batch)

    def log_probabilities_at_start(
        self,
        what: str,
        compute: Callable[[Callable[[], None]], np.ndarray],
        further: Any = None,
    ) -> np.ndarray:
        """Log-probabilities under the weights that the phase starts from, computed or stored.

        `compute` is given what to call before each batch. `what` is scored, one row each, and
        `further` says what besides the examples. UserError if a log-probability is not finite.
        """
        key = reference_key(self.model.fingerprint, self.start, self.examples, further)
        # Nothing of this pass is kept before it ends, so a stop request abandons it.
        found = self.saver.references(
            key, lambda: finite(compute(self.saver.raise_if_stopped), what)
        )
        return found.reshape(-1)

    def _divergence(self, trained: Trainable) -> float:
        """KL(trained || start) of the next token, on the first held-out or training examples.

        It is exact at each place of their completions, over the whole vocabulary; the places are
        those that the search visited.
        """
        plan = self.held_plan if self.held else self.every_example
        # The held-out plan is one step, so micro-batches are counted.
        micros = [(micro,) for step in plan.steps for micro in step]
        spent = accumulate(Plan((one,)).row_tokens for one in micros)
        few = Plan(tuple(micros[: 1 + sum(tokens < MEASURED_TOKENS for tokens in spent)]))
        return mean_divergence(
            self.scoring, trained, self.start, self._frozen(self.start), few, self.mesh
        )

    def plan_segments(self, batches: Sequence[Sequence[Segment]]) -> Plan:
        """Packed rows of batches of segments."""
        backend = jax.default_backend()
        return plan_on(self.mesh, batches, self.model.spec, self.config.loop, backend)

    @cached_property
    def scoring(self) -> Program:
        return scoring(self._program(0.0))

    def _program(self, dropout: float) -> Program:
        # The dtype of the base decides what is computed in; the masters are float32 in any case.
        dtype = weights_dtype(self.model.params)
        return make_program(self.model.graph, dtype, self.config, dropout, jax.default_backend())

    def _frozen(self, weights: Trainable) -> nnx.State | None:
        # Full weights take the place of the base, so the step is given no second copy of it.
        return self.model.params if isinstance(weights, Adapter) else None

    def _plan_examples(self, batches: Sequence[Sequence[int]]) -> Plan:
        segments = [[segment(self.examples[i], i) for i in batch] for batch in batches]
        # A pair's two completions share their prompt already, as the branches of one segment.
        if not any(isinstance(example, DpoExample) for example in self.examples[:1]):
            loop = self.config.loop
            longest = loop.max_length
            if loop.row_length:  # joined prompts must not make rows longer
                single = (one.tokens for batch in segments for one in batch)
                longest = min(longest, max(loop.row_length, *single, 0))
            segments = [share_prompts(batch, longest) for batch in segments]
        return self.plan_segments(segments)


def _together(config: PhaseConfig) -> bool:
    """Whether completions of the same prompt stay in one batch."""
    # For a policy gradient they are a group, whose advantages balance each other.
    return isinstance(config, PgConfig) or (
        isinstance(config, SftConfig) and config.siblings_together
    )


def fill_sequences(rows: PackedRows, values: np.ndarray) -> np.ndarray:
    """[R S] float32: each packed sequence's value, and 0 for empty slots."""
    # For empty slots, which have number -1, the last value is read and masked.
    return np.where(rows.sequences >= 0, values[rows.sequences], 0.0).astype(np.float32)
