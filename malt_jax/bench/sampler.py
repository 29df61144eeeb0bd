"""`malt bench sampler`: expands search trees, beside transformers and google-tunix in the same run.

All samplers answer the same prompts in the same order of roles, with the same limits and end
tokens, each in a process of its own so that each has its own peak memory. The prompts are those of
the tree that our sampler expands. The peers draw their own completions for them, transformers with
`num_return_sequences`, tunix from copies of a prompt, in batches of similar length, at the batch
size that was fastest on some of the second role's prompts. Tokens are generated tokens, end token
included; compiling and loading are not timed on any side.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from malt_jax.bench.worker import beside_tunix, measured_apart, no_peer

DEFAULTS: dict[str, Any] = {
    "task": "gsm8k",
    "questions": 8,
    "branch": 3,
    "max_new_tokens": 128,
    "temperature": 0.3,
    "dtype": None,
    "quantize": "none",
    "no_roofline": False,
    "peer_batches": "4,8,16",
    "no_peer": False,
}
"""Settings beside the fields of the config; `dtype` is the platform's by default."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Measures all samplers; the caller prints the result as the last line of standard output."""
    with tempfile.TemporaryDirectory() as folder:
        job = job | {"prompts": str(Path(folder) / "prompts.json")}
        ours = measured_apart("sampler", job)
        # The peers follow what ours chose, so that all compute in one dtype on one platform.
        job |= {"dtype": ours["dtype"], "device": ours["platform"]}
        tunix = beside_tunix("sampler_tunix", job, ours["tokens_per_s"])
        if reason := no_peer(job, ("torch", "transformers")):
            return {**ours, "peer": reason, **tunix}
        peer = measured_apart("sampler_peer", job)
    ratio = ours["tokens_per_s"] / peer["tokens_per_s"]
    return {**ours, "hf_tokens_per_s": peer["tokens_per_s"], "ratio": ratio, "hf": peer, **tunix}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measures our sampler in this process, and writes the tree's prompts for the peers."""
    # Here and not above: the parent process only starts workers and needs no JAX.
    import jax

    from malt_jax.bench.inputs import word_problems
    from malt_jax.config.reading import build
    from malt_jax.config.sampler import SamplerConfig
    from malt_jax.models.model import load_model
    from malt_jax.models.quantized import weights_dtype
    from malt_jax.sampling.sampler import Sampler
    from malt_jax.tasks import get_task
    from malt_jax.tree.expand import expand

    model = load_model(job["model"], dtype=job["dtype"], quantize=job["quantize"])
    sampler = Sampler(model, build(SamplerConfig, job["sampler"]))
    count = job["questions"]
    if job["train_path"]:
        questions = get_task(job["task"]).load("train", job["train_path"], count, 0)
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
        # Siblings share a prompt: a peer gets it once and draws all of them from it.
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
        "dtype": weights_dtype(model.params).name,
        "load_average": os.getloadavg()[0],
    }
    if not job["no_roofline"]:
        from malt_jax.bench.machine import measure as roofline

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
    return make_chain(PipelineConfig(roles=roles), get_task(job["task"]).templates)
