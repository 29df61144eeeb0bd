"""`malt bench sampler`: expands search trees, beside transformers' `generate` in the same run.

Both samplers answer the same prompts in the same order of roles, with the same limits and end
tokens, each in a process of its own so that each has its own peak memory. The prompts are those of
the tree that our sampler expands. transformers draws its own completions for them with
`num_return_sequences`, in batches of similar length, at the batch size that was fastest on some of
the second role's prompts. Tokens are generated tokens, end token included; compiling and loading
are not timed on either side.

    python -m malt_jax.bench.sampler --model DIR --questions 8 --branch 3 --max-new-tokens 128
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from malt_jax.bench.worker import answer, start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="a local Hugging Face directory")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--branch", type=int, default=3, help="completions of every prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--train-path", help="a GSM8K file; default: built-in word problems")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by platform")
    parser.add_argument("--rows", type=int, default=0, help="sampler.rows")
    parser.add_argument("--width", type=int, default=0, help="sampler.width")
    parser.add_argument("--cache", choices=("auto", "int8"), default="auto", help="sampler.cache")
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto")
    parser.add_argument(
        "--peer-batches", default="4,8,16", help="prompts per batch that it may choose"
    )
    parser.add_argument("--no-peer", action="store_true", help="do not run transformers")
    parser.add_argument("--no-roofline", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures both samplers; the caller prints the result as the last line of standard output."""
    job = {name: value for name, value in vars(args).items() if name != "worker"}
    job["model"] = str(Path(args.model).absolute())
    with tempfile.TemporaryDirectory() as folder:
        job["prompts"] = str(Path(folder) / "prompts.json")
        result = start("malt_jax.bench.sampler", ["--worker", json.dumps(job)])
        missing = [n for n in ("torch", "transformers") if not importlib.util.find_spec(n)]
        if args.no_peer or missing:
            return {**result, "peer": f"not run: {', '.join(missing) or 'asked not to'}"}
        # The peer follows what ours chose, so that both compute in one dtype on one platform.
        job.update(dtype=result["dtype"], device=result["platform"])
        peer = start("malt_jax.bench.sampler_peer", [json.dumps(job)])
    ratio = result["tokens_per_s"] / peer["tokens_per_s"]
    return {**result, "hf_tokens_per_s": peer["tokens_per_s"], "ratio": ratio, "hf": peer}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measures our sampler in this process, and writes the tree's prompts for transformers."""
    # Here and not above: the parent process only starts workers and needs no JAX.
    import jax

    from malt_jax.bench.questions import word_problems
    from malt_jax.config.sampler import SamplerConfig
    from malt_jax.models.model import load_model
    from malt_jax.sampling.sampler import Sampler
    from malt_jax.tasks import get_task
    from malt_jax.tree.expand import expand

    model = load_model(job["model"], dtype=job["dtype"])
    names = ("rows", "width", "cache", "weights")
    sampler = Sampler(model, SamplerConfig(**{name: job[name] for name in names}))
    count = job["questions"]
    if job["train_path"]:
        questions = get_task("gsm8k").load("train", job["train_path"], count, 0)
    else:
        questions = word_problems(count)
    began = time.perf_counter()
    pipeline = _pipeline(job)
    forest = expand(
        model,
        sampler,
        questions,
        pipeline,
        adapters={},
        seed=0,
        round=0,
        on_level=lambda role, calls: print(f"{role}: {calls} completions", file=sys.stderr),
    )
    stats = sampler.stats
    # Programs are compiled within `expand`, on first need, and their time is taken out again.
    seconds = time.perf_counter() - began - stats.compile_seconds
    nodes = [node for tree in forest.trees for node in tree.nodes]
    levels = [
        # Siblings share a prompt: the peer gets it once and draws all of them from it.
        list(dict.fromkeys(node.prompt_ids for node in nodes if node.role == role.name))
        for role in pipeline.roles
    ]
    Path(job["prompts"]).write_text(json.dumps(levels))
    device = jax.local_devices()[0]
    result = {
        "bench": "sampler",
        **{name: job[name] for name in ("questions", "branch", "max_new_tokens", "temperature")},
        **stats.as_dict(),
        "tokens_per_s": stats.tokens_generated / seconds,
        "seconds": seconds,
        "compile_s": stats.compile_seconds,
        "device": f"{device.device_kind}, {os.cpu_count()} cores",
        "platform": device.platform,
        "dtype": jax.tree.leaves(model.params)[0].dtype.name,
        "load_average": os.getloadavg()[0],
    }
    if not job["no_roofline"]:
        from malt_jax.bench.roofline import measure as roofline

        longest = max(map(len, levels[-1]))
        result["roofline"] = roofline(sampler, longest, job["max_new_tokens"], job["branch"])
    return result


def _pipeline(job: dict[str, Any]) -> Any:
    from malt_jax.config.pipeline import PipelineConfig, RoleConfig
    from malt_jax.tasks import get_task
    from malt_jax.tree.roles import make_chain

    drawn = {
        "branch": job["branch"],
        "temperature": job["temperature"],
        "max_new_tokens": job["max_new_tokens"],
    }
    roles = tuple(RoleConfig(name, **drawn) for name in ("generator", "verifier", "refiner"))
    return make_chain(PipelineConfig(roles=roles), get_task("gsm8k").templates)


def main() -> None:
    parser = argparse.ArgumentParser(prog="malt bench sampler", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    print(json.dumps(answer(measure, args.worker) if args.worker else run(args)))


if __name__ == "__main__":
    main()
