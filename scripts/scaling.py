"""Measures how the search's time and memory grow, on the quickstart's model and on random ones.

    python scripts/scaling.py

Prints one Markdown table per sweep: questions, branching, new tokens, model size. Seconds are the
best of two repetitions and include prefill, decoding and the host's work, without compiling. Memory
is that of caches and logits by the sampler's plan, and the growth of the process at its peak, trees
included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from malt_jax import config, load_model
from malt_jax.algorithm import search
from malt_jax.config.run import Config
from malt_jax.config.sampler import SamplerConfig
from malt_jax.memory import peak_bytes
from malt_jax.models.decoder import Decoder
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling.request import Request, SamplingParams
from malt_jax.sampling.sampler import Sampler
from malt_jax.tasks import get_task

REPEATS = 2


def main() -> None:
    settings = config.load("configs/quickstart.yaml")
    model = load_model("quickstart")
    table(
        "questions",
        ((n, 39 * n, lambda n=n: tree(model, settings, n, 3)) for n in (8, 16, 32, 64, 150, 300)),
    )
    table(
        "branches",
        (
            (b, 150 * (b + b**2 + b**3), lambda b=b: tree(model, settings, 150, b))
            for b in (1, 2, 3, 4)
        ),
    )
    table(
        "new tokens",
        ((n, 512 * n, lambda n=n: drawn(model, n)) for n in (16, 32, 64, 128)),
    )
    widths = (64, 128, 256, 512)
    models = {width: random_model(replace_width(model.spec, width)) for width in widths}
    table(
        "parameters",
        ((size(m), 512 * 32, lambda m=m: drawn(m, 32)) for m in models.values()),
    )


def table(name: str, points: Iterable[tuple[int, int, Callable[[], Any]]]) -> None:
    """Measures the points of a sweep and prints them; the ratio is to the first point's seconds."""
    print(f"| {name} | completions or tokens | seconds | ratio | caches MB | process grew MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    first = 0.0
    for value, amount, run in points:
        run()  # compiles
        before = peak_bytes()
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            sampler = run()
            times.append(time.perf_counter() - began)
        first = first or min(times)
        grew = (peak_bytes() - before) / 1e6
        caches = sampler.stats.cache_bytes / 1e6
        print(
            f"| {value:,} | {amount:,} | {min(times):.2f} | {min(times) / first:.2f} "
            f"| {caches:.0f} | {grew:.0f} |",
            flush=True,
        )
    print()


SAMPLERS: dict[tuple[int, SamplerConfig], Sampler] = {}


def sampler_of(model: Any, settings: SamplerConfig) -> Sampler:
    """One sampler per model and config, so that only its first run compiles."""
    key = (id(model), settings)
    if key not in SAMPLERS:
        SAMPLERS[key] = Sampler(model, settings)
    return SAMPLERS[key]


def tree(model: Any, settings: Config, questions: int, branch: int) -> Sampler:
    """Searches so many questions with the quickstart's roles."""
    roles = tuple(replace(role, branch=branch) for role in settings.pipeline.roles)
    sampler = sampler_of(model, settings.sampler)
    task = get_task("arithmetic")
    search(
        model,
        task.load("train", None, questions, 0),
        replace(settings.pipeline, roles=roles),
        task=task,
        sampler=sampler,
    )
    return sampler


def drawn(model: Any, new_tokens: int) -> Sampler:
    """Samples 512 completions of `new_tokens` tokens for 128 prompts of 40 tokens."""
    sampler = sampler_of(
        model, SamplerConfig(rows=128, prefix_buckets=(64,), new_token_buckets=(new_tokens,))
    )
    rng = np.random.default_rng(0)
    prompts: Sequence[Any] = rng.integers(3, model.spec.vocab, (128, 40))
    requests = [
        Request(tuple(map(int, prompt)), rng.integers(0, 1 << 31, (4, 2), np.uint32))
        for prompt in prompts
    ]
    sampler.sample(requests, SamplingParams(temperature=1.0, max_new_tokens=new_tokens))
    return sampler


def replace_width(spec: ModelSpec, width: int) -> ModelSpec:
    heads = width // spec.head_dim
    return replace(spec, d_model=width, d_mlp=3 * width, heads=heads, kv_heads=heads)


def random_model(spec: ModelSpec) -> Any:
    decoder = Decoder(spec, rngs=nnx.Rngs(0), dtype=jnp.float32)
    graph, params = nnx.split(decoder, nnx.Param)
    return SimpleNamespace(spec=spec, graph=graph, params=params, tokenizer=None)


def size(model: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(model.params))


if __name__ == "__main__":
    main()
