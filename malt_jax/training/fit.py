"""The two phases of a role's training: SFT on positives, then DPO against the frozen SFT policy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from malt_jax.config.training import DpoConfig, SftConfig
from malt_jax.data.examples import DpoExample, SftExample
from malt_jax.data.packing import share_prompts
from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter
from malt_jax.models.spec import ModelSpec
from malt_jax.training.dataset import admit, digest, epoch_order, segment, split
from malt_jax.training.loop import Job, OnStep, TrainOutcome, run, score_plan
from malt_jax.training.losses import loss_at_reference, preference_loss
from malt_jax.training.optim import learning_rates
from malt_jax.training.placement import micro_tokens, row_devices
from malt_jax.training.plan import Plan, plan_steps
from malt_jax.training.references import reference_key, weights_hash
from malt_jax.training.saver import MemorySaver, Saver
from malt_jax.training.step import Program, Trainable, make_program, scoring


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


def train_sft(
    model: BaseModel,
    policy: Trainable,
    examples: Sequence[SftExample],
    config: SftConfig,
    *,
    saver: Saver | None = None,
    seed: int = 0,
    dropout: float = 0.0,
    on_step: OnStep | None = None,
    mesh: Mesh | None = None,
) -> TrainOutcome:
    """Trains an adapter over the model, or full weights, to imitate the examples' completions.

    `saver` keeps checkpoints: a call on one that holds some continues from them, or returns the
    finished result. If the examples are of several roles, every batch mixes them evenly. Raises
    what `loop.run` raises, and UserError if no example is left after length filtering.
    """
    phase = _Phase(model, examples, config, seed, mesh)

    # A factory, because the program exists only inside `train`.
    def held_out(program: Program, frozen: nnx.State | None) -> Callable:
        def measure(weights: Trainable) -> dict[str, float]:
            sums, lengths = phase.score(program, weights, frozen, phase.held_plan)
            # Sequences that are not in the held-out plan are NaN and count for nothing.
            loss = float(-np.nansum(sums) / np.nansum(lengths))
            return {"held_out_loss": loss, "score": -loss}

        return measure

    # SFT has no reference, but every batch holds a reference log-probability per sequence.
    references = np.zeros(len(phase.examples), np.float32)
    return phase.train(policy, references, held_out, None, saver or MemorySaver(), dropout, on_step)


def train_dpo(
    model: BaseModel,
    policy: Trainable,
    reference: np.ndarray | Trainable,
    pairs: Sequence[DpoExample],
    config: DpoConfig,
    *,
    saver: Saver | None = None,
    seed: int = 0,
    template: str = "",
    on_step: OnStep | None = None,
    mesh: Mesh | None = None,
) -> TrainOutcome:
    """Trains `policy` to prefer the chosen completions, against the frozen `reference`.

    `reference`: the SFT policy, whose log-probabilities are computed once and kept by the saver, or
    those log-probabilities themselves, `[pairs, 2]` (chosen, rejected). `policy` must start as the
    reference. `template`: the role's prompt template, which is hashed into the key of stored
    reference log-probabilities. Otherwise as `train_sft`.
    """
    saver = saver or MemorySaver()
    phase = _Phase(model, pairs, config, seed, mesh)
    if isinstance(reference, np.ndarray):
        # The caller's rows are all pairs; the phase keeps those that the length filter admitted.
        logprobs = reference[phase.indices].reshape(-1)
    else:
        key = reference_key(
            base=model.fingerprint,
            policy=reference,
            data=digest(phase.examples),
            template=template,
        )
        compute = lambda: _finite(phase.reference_logprobs(reference, saver))  # noqa: E731
        logprobs = saver.references(key, compute).reshape(-1)

    # A factory for the same reason as in `train_sft`.
    def held_out(program: Program, frozen: nnx.State | None) -> Callable:
        def measure(weights: Trainable) -> dict[str, float]:
            sums, lengths = phase.score(program, weights, frozen, phase.held_plan)
            held = lambda x: jnp.asarray(x.reshape(-1, 2)[phase.held])  # noqa: E731
            result = preference_loss(held(sums), held(logprobs), held(lengths), config)
            margin = np.asarray(result.chosen_reward - result.rejected_reward)
            # A tie counts half, so a policy that equals its reference has an accuracy of 0.5.
            accuracy = float(np.mean((margin > 0) + 0.5 * (margin == 0)))
            loss = float(np.mean(result.loss))
            # Accuracy decides. Among equals it is the lower loss, scaled to less than one pair.
            score = accuracy - loss / (1.0 + loss) / (len(margin) + 1)
            return {"held_out_accuracy": accuracy, "held_out_loss": loss, "score": score}

        return measure

    first = loss_at_reference(config)
    return phase.train(policy, logprobs, held_out, first, saver, 0.0, on_step)


def reference_logprobs(
    model: BaseModel,
    reference: Trainable,
    pairs: Sequence[DpoExample],
    config: DpoConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The reference's log-probabilities of chosen and rejected completions, float32 `[pairs, 2]`.

    NaN for pairs that `train_dpo` would drop. With its config and seed the numbers are computed in
    the same packed rows that it trains on.
    """
    phase = _Phase(model, pairs, config, seed, mesh)
    logprobs = np.full((len(pairs), 2), np.nan, np.float32)
    logprobs[phase.indices] = phase.reference_logprobs(reference, MemorySaver())
    return logprobs


def _finite(logprobs: np.ndarray) -> np.ndarray:
    """The log-probabilities, refused if the reference's weights are broken."""
    broken = int((~np.isfinite(logprobs)).any(axis=-1).sum())
    if broken:
        raise UserError(
            f"the reference's log-probabilities hold NaN or infinity for {broken} of "
            f"{len(logprobs)} pairs, so the weights DPO starts from are broken; train the SFT "
            "phase with a lower learning rate."
        )
    return logprobs


class _Phase:
    """One phase's admitted examples with the plans to train and to measure on them."""

    def __init__(
        self,
        model: BaseModel,
        examples: Sequence[SftExample] | Sequence[DpoExample],
        config: SftConfig | DpoConfig,
        seed: int,
        mesh: Mesh | None,
    ):
        self.model, self.config, self.seed, self.mesh = model, config, seed, mesh
        loop = config.loop
        self.indices, self.examples, self.counts = admit(examples, loop.max_length)
        train, self.held = split(self.examples, loop.held_out, seed)
        self.counts |= {"trained": len(train), "held_out": len(self.held)}
        together = isinstance(config, SftConfig) and config.siblings_together
        # The learning rate runs through all epochs without a break. Batches do not cross epochs, so
        # each epoch has the same number of them; `reference_logprobs` relies on it.
        self.batches: list[list[int]] = []
        for epoch in range(config.epochs):
            chosen = [self.examples[i] for i in train]
            order = epoch_order(chosen, seed, epoch, siblings_together=together)
            # `epoch_order` numbers the training examples; the plans number all of the phase's.
            order = [train[i] for i in order]
            size = config.batch_size
            self.batches += [order[i : i + size] for i in range(0, len(order), size)]
        if not self.batches:
            raise UserError(f"no example to train on is left of {len(examples)}: {self.counts}.")
        self.plan = self._plan(self.batches)
        self.held_plan = self._plan([self.held] if self.held else [])

    def train(
        self,
        start: Trainable,
        references: np.ndarray,
        held_out: Callable,
        first_loss: float | None,
        saver: Saver,
        dropout: float,
        on_step: OnStep | None,
    ) -> TrainOutcome:
        model, config = self.model, self.config
        program = self._program(dropout)
        # Full weights take the place of the base, so the step is given no second copy of it.
        frozen = model.params if isinstance(start, Adapter) else None
        # Everything that the result of a later step depends on. The mesh is not part of it, so a
        # phase may continue on other devices.
        described = json.dumps(
            [dataclasses.asdict(config), self.seed, dropout, digest(self.examples)], sort_keys=True
        )
        identity = hashlib.sha256((described + weights_hash(start)).encode()).hexdigest()
        job = Job(
            program=program,
            spec=model.spec,
            frozen=frozen,
            plan=self.plan,
            ids=tuple(tuple(self.examples[i].id for i in batch) for batch in self.batches),
            totals=tuple(map(self._total, self.batches)),
            rates=learning_rates(config.optim, len(self.batches)),
            references=references,
            held_out=held_out(program, frozen) if self.held else None,
            first_loss=first_loss,
            config=config.loop,
            saver=saver,
            seed=self.seed,
            identity=identity,
            mesh=self.mesh,
        )
        return dataclasses.replace(run(job, start, on_step), counts=self.counts)

    def reference_logprobs(self, reference: Trainable, saver: Saver) -> np.ndarray:
        """`[pairs, 2]`, in the rows of the first epoch, so that its first step repeats them."""
        # The first epoch and the held-out examples together hold every pair once.
        epoch = Plan(
            self.plan.steps[: len(self.batches) // self.config.epochs] + self.held_plan.steps
        )
        frozen = self.model.params if isinstance(reference, Adapter) else None
        # Nothing of this pass is kept before it ends, so a stop request abandons it.
        stop = saver.raise_if_stopped
        return self.score(self._program(0.0), reference, frozen, epoch, stop)[0].reshape(-1, 2)

    def score(
        self,
        program: Program,
        weights: Trainable,
        frozen: nnx.State | None,
        plan: Plan,
        on_batch: Callable[[], None] = lambda: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        sequences = sum(len(example.completions) for example in self.examples)
        return score_plan(scoring(program), weights, frozen, plan, sequences, self.mesh, on_batch)

    def _program(self, dropout: float) -> Program:
        # The dtype of the base decides what is computed in; the masters are float32 in any case.
        dtype = jax.tree.leaves(self.model.params)[0].dtype
        return make_program(self.model.graph, dtype, self.config, dropout, jax.default_backend())

    def _plan(self, batches: Sequence[Sequence[int]]) -> Plan:
        loop = self.config.loop
        devices = row_devices(self.mesh)
        tokens = micro_tokens(loop, jax.default_backend(), devices)
        segments = [[segment(self.examples[i], i) for i in batch] for batch in batches]
        # A pair's two completions share their prompt already, as the branches of one segment.
        if isinstance(self.config, SftConfig):
            segments = [share_prompts(batch, loop.max_length) for batch in segments]
        return plan_steps(
            segments, self.model.spec, tokens, row_multiple=devices, row_length=loop.row_length
        )

    def _total(self, batch: Sequence[int]) -> float:
        """What a batch's loss is a mean over: pairs, or completion tokens."""
        if isinstance(self.config, DpoConfig):
            return float(len(batch))
        return float(sum(len(self.examples[i].completions[0]) for i in batch))
