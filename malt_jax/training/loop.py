"""The training loop: steps of a fixed plan, measured, saved, resumed bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from malt_jax.config.training import LoopConfig
from malt_jax.data.packing import PackedRows
from malt_jax.errors import UserError
from malt_jax.memory import peak_bytes
from malt_jax.models.sharding import on_mesh
from malt_jax.models.spec import ModelSpec
from malt_jax.training.objectives import Batch
from malt_jax.training.placement import place_rows, state_shardings
from malt_jax.training.plan import MicroBatch, Plan
from malt_jax.training.saver import FINAL, Saver, load_weights, save_weights
from malt_jax.training.step import (
    COMPILER_OPTIONS,
    Program,
    Trainable,
    TrainState,
    init_state,
    train_step,
)

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each step with (step, number of steps, the step's metrics)."""
Extra = Callable[[int, PackedRows], dict[str, np.ndarray]]
"""(number of the step, rows) -> `Batch.extra` as host arrays."""


@dataclass(frozen=True)
class Job:
    """Everything that defines one phase of training except the weights it starts from."""

    program: Program
    spec: ModelSpec
    frozen: nnx.State | None
    plan: Plan
    ids: tuple[tuple[str, ...], ...]
    """The examples of each step's batch."""
    totals: tuple[float, ...]
    """The number of tokens, pairs or completions that each step's loss is a mean over."""
    rates: np.ndarray
    """Learning rate of each step."""
    references: np.ndarray
    """[sequences] The reference's log-probabilities; zeros where the objective has none."""
    extra: Extra
    """Further inputs of the objective for the rows of a micro-batch."""
    before_step: Callable[[int, Trainable], dict[str, Any]] | None
    """Measured with the weights at the start of each step, in place of what `extra` gave."""
    held_out: Callable[[Trainable], dict[str, float]] | None
    """Measures weights on the held-out examples; higher `score` is better."""
    at_end: Callable[[Trainable], dict[str, float]]
    """Measures the trained weights once."""
    first: tuple[str, float] | None
    """A metric and the value that the first step must show."""
    config: LoopConfig
    saver: Saver
    seed: int
    identity: str
    """Hash of config, data and starting weights; a checkpoint of another identity is refused."""
    mesh: Mesh | None


@dataclass(frozen=True)
class TrainOutcome:
    """The trained weights and what the phase cost."""

    trainable: Trainable
    """The best weights by the held-out examples; the last ones where none are held out."""
    steps: int
    log: list[dict[str, float]]
    """One entry per step."""
    seconds: float
    tokens: int
    """Useful tokens trained on: prompt and completion of every sequence, padding excluded."""
    padding_waste: float
    peak_bytes: int
    """Highest memory use of the process on a CPU, of an accelerator since the process began."""
    stopped_early: bool
    best_step: int | None
    counts: dict[str, int] = field(default_factory=dict)
    """Examples dropped (`no_room`, `empty`, `equal`, `too_long`), `truncated`, `trained`,
    `held_out`, and `unused`, which no step reaches."""
    measured: dict[str, float] = field(default_factory=dict)
    """Measured once: `kl_from_start` of the trained weights, the load of a mixture's experts
    (`balance`), and what the phase adds."""


@dataclass
class _Progress:
    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_score: float = -math.inf
    worse: int = 0
    """Measurements since the best one."""
    saved_best: str = ""
    """The best weights at the newest checkpoint."""
    stopped_early: bool = False
    log: list[dict[str, float]] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)


def run(job: Job, start: Trainable, on_step: OnStep | None = None) -> TrainOutcome:
    """Trains from `start`, or continues from the newest checkpoint of the job's saver.

    Raises UserError when a gradient is not finite or explodes (the saver then keeps the ids of the
    batch), for checkpoints of another job, and when a phase with a reference does not start from
    it; RunStopped when a stop was requested, after saving.
    """
    # The model's `constrain` looks up the current mesh while the step is traced.
    with on_mesh(job.mesh):
        if job.saver.names(FINAL):
            progress = _progress_of(job, FINAL)
            outcome = _outcome(job, load_weights(job.saver, FINAL, start), progress)
        else:
            state, progress = _begin(job, start)
            state = _steps(job, state, progress, on_step)
            outcome = _finish(job, state, progress)
        # Only now: until `final` is complete, a restart needs the newest of these.
        for prefix in ("step-", "best-"):
            job.saver.remove(prefix)
        return outcome


def _begin(job: Job, start: Trainable) -> tuple[TrainState, _Progress]:
    # A fresh state is made in any case: it gives the shapes and shardings to restore into.
    state = init_state(job.program, start)
    shardings = state_shardings(job.program, state, job.spec, job.mesh)
    if shardings is not None:
        state = jax.device_put(state, shardings)
    saved = job.saver.names("step-")
    if not saved:
        return state, _Progress()
    # Numbers in names have eight digits, so the last name in alphabetical order is the newest.
    progress = _progress_of(job, saved[-1])
    kept = job.saver.restore(saved[-1], _kept(state))
    return replace(state, trainable=kept["trainable"], moments=kept["moments"]), progress


def _steps(job: Job, state: TrainState, progress: _Progress, on_step: OnStep | None) -> TrainState:
    config, total = job.config, len(job.plan.steps)
    shardings = state_shardings(job.program, state, job.spec, job.mesh)
    # Fixed output shardings lay the new state out like the old one, so the next call meets the same
    # program. The old one is donated: weights and moments exist once.
    outputs = None if shardings is None else (shardings, None)
    step_fn = jax.jit(
        train_step,
        static_argnums=0,
        donate_argnums=1,
        out_shardings=outputs,
        compiler_options=COMPILER_OPTIONS.get(jax.default_backend()),
    )
    eval_every = config.eval_every or -(-total // 8)
    # By default no step is due, because after the last one `final` is saved instead.
    save_every = config.save_every or total
    job.saver.raise_if_stopped()  # before the first step compiles: nothing is lost yet
    # Rows and keys depend on the number of the step only, so a resumed phase meets the same ones.
    batches = _batches(job, progress.step)
    while progress.step < total and not progress.stopped_early:
        began = time.perf_counter()
        # 1. The micro-batches of one step add up their gradients; the last one updates the weights.
        if job.before_step is not None:
            now = job.before_step(progress.step, state.trainable)
            batches = [replace(batch, extra={**batch.extra, **now}) for batch in batches]
        for batch in batches:
            state, metrics = step_fn(job.program, state, job.frozen, batch)
        # 2. The host lays out the next step's rows while the device still computes this one.
        batches = _batches(job, progress.step + 1)
        # 3. Reading the metrics waits for the device. An unsound step stops the training; the
        #    compiled step has left the weights as they were.
        record = {name: float(value) for name, value in metrics.items()}
        record["learning_rate"] = float(job.rates[progress.step])
        _check(job, progress, record)
        progress.step += 1
        # 4. The held-out examples decide which weights are the best so far.
        due = progress.step % eval_every == 0 or progress.step == total
        if job.held_out is not None and due:
            record |= _measure(job, state, progress)
        progress.seconds += time.perf_counter() - began
        # Measured over the whole iteration, so a step before a measurement looks slower than it is.
        record["useful_tokens"] = _useful(job, progress.step - 1)
        record["tokens_per_s"] = record["useful_tokens"] / (time.perf_counter() - began)
        progress.log.append(record)
        if on_step is not None:
            on_step(progress.step, total, record)
        # 5. A checkpoint between two steps holds weights and moments only: gradients are zero.
        saves = progress.step % save_every == 0 or job.saver.save_due()
        if (saves and progress.step < total) or job.saver.stop_requested():
            _save(job, state, progress)
            job.saver.raise_if_stopped()
    return state


def _batches(job: Job, step: int) -> list[Batch]:
    if step >= len(job.plan.steps):
        return []
    micros = job.plan.steps[step]
    # Keys are derived from the step's number and not drawn from a stream, so that dropout after a
    # restart is that of a run without one.
    key = jax.random.fold_in(jax.random.key(job.seed), step)
    return [
        _batch(job, micro, step, last=i == len(micros) - 1, key=jax.random.fold_in(key, i))
        for i, micro in enumerate(micros)
    ]


def _batch(job: Job, micro: MicroBatch, step: int, last: bool, key: jax.Array) -> Batch:
    rows = micro.arrays()
    # For padding, which has number -1, `references[-1]` is read and masked.
    reference = np.where(rows.sequences >= 0, job.references[rows.sequences], 0.0)
    extra = job.extra(step, rows)
    # Numbers of the whole step have no row axis, so they are on every device as they are.
    by_row = {name: values for name, values in extra.items() if values.ndim}
    placed = place_rows((rows, reference.astype(np.float32), by_row), job.mesh)
    rows, reference, by_row = placed
    return Batch(
        rows=rows,
        reference=reference,
        total=np.float32(job.totals[step]),
        learning_rate=job.rates[step],
        last=np.bool_(last),
        key=key,
        extra={**extra, **by_row},
    )


def _check(job: Job, progress: _Progress, record: dict[str, float]) -> None:
    step, norm = progress.step, record["gradient_norm"]
    if not (math.isfinite(norm) and norm <= job.config.explode and math.isfinite(record["loss"])):
        # As text, because NaN and infinity are no JSON.
        found = {name: str(value) for name, value in record.items()}
        place = job.saver.stopped_batch({"step": step + 1, "ids": job.ids[step], **found})
        raise UserError(
            f"training stopped at step {step + 1}: loss {record['loss']:.4g}, gradient norm "
            f"{norm:.4g}, allowed: finite and at most {job.config.explode:g}. The weights were "
            f"left as they were; the batch's ids are in {place}. Lower `learning_rate`, or look "
            "at these examples."
        )
    if step == 0 and job.first is not None:
        name, expected = job.first
        # Rounding alone separates policy and reference: bfloat16 rounds by about 0.4%, and GPUs and
        # TPUs may multiply float32 as coarsely.
        exact = job.program.dtype == "float32" and jax.default_backend() == "cpu"
        slack = 1e-3 if exact else 5e-2
        if abs(record[name] - expected) > slack * max(1.0, expected):
            raise UserError(
                f"the phase starts at a {name} of {record[name]:.6f} instead of {expected:.6f}: "
                "the stored log-probabilities of the reference are not those of the policy it "
                "starts from; remove the phase's folder of checkpoints to have them computed anew"
            )


def _measure(job: Job, state: TrainState, progress: _Progress) -> dict[str, float]:
    """Held-out metrics; keeps the weights if they are the best so far."""
    assert job.held_out is not None
    measured = job.held_out(state.trainable)
    score = measured.pop("score")
    if score > progress.best_score:
        progress.best_score, progress.best_step, progress.worse = score, progress.step, 0
        name = f"best-{progress.step:08d}"
        save_weights(job.saver, name, state.trainable, {"identity": job.identity})
        # A restart goes back to the newest checkpoint, and with it to the weights that were the
        # best then.
        job.saver.remove("best-", keep=(name, progress.saved_best))
    else:
        progress.worse += 1
        progress.stopped_early = 0 < job.config.patience <= progress.worse
    return measured


def _finish(job: Job, state: TrainState, progress: _Progress) -> TrainOutcome:
    trainable = state.trainable
    if progress.best_step not in (None, progress.step):
        trainable = load_weights(job.saver, f"best-{progress.best_step:08d}", trainable)
    progress.measured = job.at_end(trainable)
    facts = {"identity": job.identity, "progress": _plain(progress)}
    save_weights(job.saver, FINAL, trainable, facts)
    return _outcome(job, trainable, progress)


def _outcome(job: Job, trainable: Trainable, progress: _Progress) -> TrainOutcome:
    return TrainOutcome(
        trainable=trainable,
        steps=progress.step,
        log=progress.log,
        seconds=progress.seconds,
        tokens=sum(_useful(job, step) for step in range(progress.step)),
        padding_waste=job.plan.padding_waste,
        peak_bytes=peak_bytes(),
        stopped_early=progress.stopped_early,
        best_step=progress.best_step,
        measured=progress.measured,
    )


def _useful(job: Job, step: int) -> int:
    return Plan((job.plan.steps[step],)).useful_tokens


def _kept(state: TrainState) -> dict[str, Any]:
    """What a checkpoint in the middle of a phase holds."""
    return {"trainable": state.trainable, "moments": state.moments}


def _save(job: Job, state: TrainState, progress: _Progress) -> None:
    progress.saved_best = f"best-{progress.best_step or 0:08d}"
    facts = {"identity": job.identity, "progress": _plain(progress)}
    name = f"step-{progress.step:08d}"
    job.saver.save(name, _kept(state), facts)
    job.saver.remove("step-", keep=(name,))
    job.saver.remove("best-", keep=(progress.saved_best,))


def _plain(progress: _Progress) -> dict[str, Any]:
    plain = asdict(progress)
    # JSON has no infinity: without a best step there is no best score.
    return {**plain, "best_score": progress.best_score if progress.best_step is not None else None}


def _progress_of(job: Job, name: str) -> _Progress:
    facts = job.saver.facts(name)
    if facts["identity"] != job.identity:
        raise UserError(
            f"{job.saver.place(name)}: was made with another config, data or starting weights; "
            "remove the folder it is in to train anew, or restore what it was made with."
        )
    saved = facts["progress"]
    score = -math.inf if saved["best_score"] is None else saved["best_score"]
    return _Progress(**{**saved, "best_score": score})
