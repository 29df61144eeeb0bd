"""`malt bench train`: training throughput and memory, beside TRL + PEFT and tunix in the same run.

All train LoRA adapters on all linear layers, over the same token ids in real GSM8K lengths
(`bench.inputs`) and in one dtype, each in a process of its own, so that peak memory is its own.
Useful tokens are the prompt and completion tokens of every sequence (a DPO pair is two sequences),
whatever a side pads, shares or skips. The first step is left out on all sides, and compiling on
ours and tunix's. The time of a DPO training includes the passes for the reference's
log-probabilities, one on our side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from malt_jax.bench.worker import beside_tunix, measured_apart, no_peer

LOOP_FIELDS = ("micro_tokens", "row_length", "remat", "logit_chunk")
"""Fields of the phase's loop that are measured as the config has them."""

DEFAULTS: dict[str, Any] = {
    "stage": "sft",
    "steps": 4,
    "dtype": "float32",
    "quantize": "none",
    "no_peer": False,
}
"""Settings beside the fields of the config; the first step is not timed."""

PASSES = {"sft": 0, "dpo": 1, "kto": 3, "pg": 1}
"""Forward passes beside the step's. KTO's are two of the reference and one of the policy, because
mismatched completions are scored as well."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Measures all sides; the result is printed as the last line of standard output."""
    job = job | {"threads": os.cpu_count()}
    ours = measured_apart("train", job)
    result = {"bench": "train", **job, **ours}
    if job["stage"] not in ("sft", "dpo"):
        missing = f"not run: no {job['stage']} in the peers' scripts"
        return {**result, "peer": missing, "tunix": missing}
    result |= beside_tunix("train_tunix", job, result["tokens_per_s"])
    if reason := no_peer(job, ("torch", "trl", "peft")):
        return {**result, "peer": reason}
    job["device"] = result["platform"]
    # By default TRL recomputes activations; without that it is faster and needs more memory. The
    # ratio is to its faster setting, and the memory beside it is that of its leaner one.
    found = {
        name: measured_apart("train_peer", {**job, "checkpointing": on})
        for name, on in (("default", True), ("no_checkpointing", False))
    }
    fastest = max(peer["tokens_per_s"] for peer in found.values())
    return {
        **result,
        "trl": found,
        "trl_tokens_per_s": fastest,
        "trl_peak_bytes": min(peer["peak_bytes"] for peer in found.values()),
        "ratio": result["tokens_per_s"] / fastest,
        "ratio_to_trl_defaults": result["tokens_per_s"] / found["default"]["tokens_per_s"],
    }


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Our side, in this process."""
    import jax

    from malt_jax.bench import inputs
    from malt_jax.config.lora import LoraConfig
    from malt_jax.config.training import DpoConfig, KtoConfig, LoopConfig, PgConfig, SftConfig
    from malt_jax.memory import peak_bytes
    from malt_jax.models.model import load_model
    from malt_jax.planning.utilisation import training_flops
    from malt_jax.training.fit import train_phase
    from malt_jax.training.saver import MemorySaver
    from malt_jax.training.weights import initial_weights

    model = load_model(job["model"], dtype=job["dtype"], quantize=job["quantize"])
    lora = LoraConfig(rank=job["rank"], alpha=2.0 * job["rank"])
    adapter = initial_weights(model, lora)
    count, vocab = job["batch"] * job["steps"], model.spec.vocab
    loop = LoopConfig(**{name: job[name] for name in LOOP_FIELDS})
    common = {"epochs": 1, "batch_size": job["batch"], "loop": loop}
    compiling = CompileClock()
    finished: list[tuple[float, float, float]] = []
    """Wall, processor and compile seconds at the end of each step."""

    def on_step(step: int, steps: int, record: dict[str, float]) -> None:
        finished.append((time.perf_counter(), time.process_time(), compiling.seconds))

    reference_s = 0.0

    class Timed(MemorySaver):
        def references(self, key: Any, compute: Callable[[], Any]) -> Any:
            nonlocal reference_s
            began, compiled = time.perf_counter(), compiling.seconds
            values = compute()
            reference_s = time.perf_counter() - began - (compiling.seconds - compiled)
            return values

    kinds: dict[str, tuple[Callable[..., Sequence[Any]], Any]] = {
        "sft": (inputs.sft_examples, SftConfig),
        "dpo": (inputs.dpo_examples, DpoConfig),
        "kto": (inputs.kto_examples, KtoConfig),
        "pg": (inputs.policy_examples, PgConfig),
    }
    make, fields = kinds[job["stage"]]
    examples = make(count, vocab, 0)
    outcome = train_phase(
        model, adapter, examples, fields(**common), saver=Timed(), on_step=on_step
    )
    # From the end of the first step to that of the last, so that the first one is left out.
    elapsed, cpu, compiled = (b - a for a, b in zip(finished[0], finished[-1], strict=True))
    tokens = outcome.tokens - outcome.log[0]["useful_tokens"]
    # The reference pass covers every step; the timed ones carry their share of it.
    seconds = elapsed - compiled + reference_s * tokens / outcome.tokens
    rate = matmul_flops(job["dtype"])
    groups = [(len(e.prompt_ids), [*map(len, e.completions)]) for e in examples]
    flops = training_flops(model.spec, groups, PASSES[job["stage"]]) * tokens / outcome.tokens
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "cpu_tokens_per_s": tokens / cpu,
        "reference_s": reference_s,
        "model_flops_utilisation": flops / seconds / rate,
        "matmul_flops_per_s": rate,
        "peak_bytes": peak_bytes(),
        "padding_waste": outcome.padding_waste,
        "compile_s": compiling.seconds,
    }


class CompileClock:
    """Seconds that JAX has spent on tracing, lowering and compiling since this was made."""

    def __init__(self) -> None:
        import jax

        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration_secs


def matmul_flops(dtype: str) -> float:
    """The device's best measured rate of square matrix products, in operations per second."""
    import jax
    import jax.numpy as jnp

    from malt_jax.models.matmul import matmul

    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    product = jax.jit(matmul)  # the model's own: a CPU has a slower one in bfloat16
    best = 0.0
    for size in sizes:
        x = jnp.ones((size, size), dtype)
        # The first call compiles.
        product(x, x).block_until_ready()
        for _ in range(5):
            began = time.perf_counter()
            product(x, x).block_until_ready()
            best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
    return best
