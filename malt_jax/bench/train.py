"""`malt bench train`: training throughput and memory, beside TRL + PEFT in the same run.

Both train LoRA adapters on all linear layers, over the same token ids in real GSM8K lengths
(`bench.lengths`) and in one dtype, each in a process of its own, so that peak memory is its own.
Useful tokens are the prompt and completion tokens of every sequence (a DPO pair is two sequences),
whatever a side pads, shares or skips. The first step is left out on both sides, and compiling on
ours. The time of a DPO training includes one pass for the reference's log-probabilities.

    python -m malt_jax.bench.train --model DIR --stage dpo
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.bench.worker import answer, start
from malt_jax.config.pipeline import PHASES

if TYPE_CHECKING:
    from malt_jax.data.examples import Example
    from malt_jax.models.spec import ModelSpec


PASSES = {"sft": 0, "dpo": 1, "kto": 3, "pg": 1}
"""Forward passes beside the step's. KTO's are two of the reference and one of the policy, because
mismatched completions are scored as well."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="a local Hugging Face directory")
    parser.add_argument("--stage", choices=PHASES, default="sft")
    parser.add_argument("--batch", type=int, default=8, help="examples or pairs per step")
    parser.add_argument("--steps", type=int, default=4, help="steps; the first one is not timed")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank")
    parser.add_argument("--micro-tokens", type=int, default=0, help="train.*.loop.micro_tokens")
    parser.add_argument("--row-length", type=int, default=0, help="train.*.loop.row_length")
    parser.add_argument("--remat", default="auto", choices=("auto", "none", "dots", "full"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--no-peer", action="store_true", help="do not run TRL + PEFT")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures both sides; the result is printed as the last line of standard output."""
    job = {name: value for name, value in vars(args).items() if name not in ("worker", "no_peer")}
    job |= {"model": str(Path(args.model).absolute()), "threads": os.cpu_count()}
    ours = start("malt_jax.bench.train", ["--worker", json.dumps(job)])
    result = {"bench": "train", **job, **ours}
    missing = [name for name in ("torch", "trl", "peft") if not importlib.util.find_spec(name)]
    other = [] if args.stage in ("sft", "dpo") else [f"no {args.stage} in the peer's script"]
    if args.no_peer or missing or other:
        return {**result, "peer": f"not run: {', '.join(missing + other) or 'asked not to'}"}
    job["device"] = result["platform"]
    # By default TRL recomputes activations; without that it is faster and needs more memory. The
    # ratio is to its faster setting, and the memory beside it is that of its leaner one.
    found = {
        name: start("malt_jax.bench.train_peer", [json.dumps({**job, "checkpointing": on})])
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

    from malt_jax.bench import lengths
    from malt_jax.config.lora import LoraConfig
    from malt_jax.config.training import DpoConfig, KtoConfig, LoopConfig, PgConfig, SftConfig
    from malt_jax.memory import peak_bytes
    from malt_jax.models.lora import init_adapter
    from malt_jax.models.model import load_model
    from malt_jax.training.fit import train_phase
    from malt_jax.training.saver import MemorySaver

    model = load_model(job["model"], dtype=job["dtype"], stacked=True)
    lora = LoraConfig(rank=job["rank"], alpha=2.0 * job["rank"])
    adapter = init_adapter(model.spec, lora, jax.random.key(0), stacked=True)
    count, vocab = job["batch"] * job["steps"], model.spec.vocab
    loop = LoopConfig(**{name: job[name] for name in ("micro_tokens", "row_length", "remat")})
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

    kinds: dict[str, tuple[Callable[..., list[Any]], type[Any]]] = {
        "sft": (lengths.sft_examples, SftConfig),
        "dpo": (lengths.dpo_examples, DpoConfig),
        "kto": (lengths.kto_examples, KtoConfig),
        "pg": (lengths.policy_examples, PgConfig),
    }
    make, fields = kinds[job["stage"]]
    examples = make(count, vocab, 0)
    outcome = train_phase(
        job["stage"], model, adapter, examples, fields(**common), saver=Timed(), on_step=on_step
    )
    # From the end of the first step to that of the last, so that the first one is left out.
    elapsed, cpu, compiled = (b - a for a, b in zip(finished[0], finished[-1], strict=True))
    tokens = outcome.tokens - outcome.log[0]["useful_tokens"]
    # The reference pass covers every step; the timed ones carry their share of it.
    seconds = elapsed - compiled + reference_s * tokens / outcome.tokens
    rate = matmul_flops(job["dtype"])
    flops = model_flops(model.spec, examples, PASSES[job["stage"]]) * tokens / outcome.tokens
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


def model_flops(spec: ModelSpec, examples: Sequence[Example], passes: int) -> float:
    """Operations that LoRA training on these examples needs, with shared prompts computed once.

    Forward and backward to the activations (frozen weights have no gradient, so two passes and not
    three), logits at completion tokens, scores and values of visible keys (three passes), and
    `passes` more forward passes, of a reference.
    """
    from malt_jax.planning.formula import layer_weights

    heads, weights = spec.heads * spec.head_dim, spec.num_layers * layer_weights(spec)
    total = 0.0
    for example in examples:
        prompt, branches = len(example.prompt_ids), [len(c) for c in example.completions]
        tokens = prompt + sum(branches)
        # Pairs of a query and a key that it may see: half of the square within a part, and all of
        # the prompt for each completion token.
        visible = prompt**2 / 2 + sum(prompt * c + c**2 / 2 for c in branches)
        linear = 2.0 * (weights * tokens + spec.d_model * spec.vocab * sum(branches))
        # Two products, scores and the mix of values, at two operations each.
        attention = 4.0 * spec.num_layers * heads * visible
        total += 2 * linear + 3 * attention + passes * (linear + attention)
    return total


def matmul_flops(dtype: str) -> float:
    """The device's best measured rate of square matrix products, in operations per second."""
    import jax
    import jax.numpy as jnp

    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    product = jax.jit(jnp.matmul)
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="malt bench train", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    print(json.dumps(answer(measure, args.worker) if args.worker else run(args)))


if __name__ == "__main__":
    main()
