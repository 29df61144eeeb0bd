"""What `model.quantize: int8` costs in accuracy and gains in speed, on a model of yours.

    python scripts/quantized_base.py DIR QUESTIONS.jsonl --questions 12 --new-tokens 96

Draws an answer to each question (field `question`) with the float model and with the quantised one,
in turns, and prints tokens per second of each turn. The float model's answers are then read by
both: the mean divergence KL(float || int8) of the next token, and how often the likeliest is the
same. Last, the bytes of the weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import malt_jax as malt
from malt_jax.sampling.request import Completion, Request, SamplingParams
from malt_jax.sampling.sampler import Sampler
from malt_jax.tasks import get_task
from malt_jax.tree.keys import node_key
from malt_jax.tree.prompts import render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a local Hugging Face directory")
    parser.add_argument("questions_file", help="JSONL with a field `question`")
    parser.add_argument("--task", default="gsm8k", help="whose generator template is used")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each model")
    options = parser.parse_args()
    models = {
        "float": malt.load_model(options.model),
        "int8": malt.load_model(options.model, quantize="int8"),
    }
    with Path(options.questions_file).open() as file:
        rows = [json.loads(line) for line, _ in zip(file, range(options.questions), strict=False)]
    questions = {str(number): row["question"] for number, row in enumerate(rows)}
    requests = prompts(models["float"], options.task, questions, "quantized")
    params = SamplingParams(temperature=0.7, max_new_tokens=options.new_tokens)
    samplers = {name: Sampler(model) for name, model in models.items()}
    drawn = {name: s.sample(requests, params) for name, s in samplers.items()}  # compiles
    rates: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(options.rounds):
        for name, sampler in samplers.items():
            start = time.perf_counter()
            tokens = sum(len(d[0].tokens) for d in sampler.sample(requests, params))
            rates[name].append(tokens / (time.perf_counter() - start))
    for name, model in models.items():
        size = sum(x.nbytes for x in jax.tree.leaves(model.params)) / 1e9
        shown = ", ".join(f"{rate:.1f}" for rate in rates[name])
        print(f"{name}: {size:.2f} GB of weights; tokens per second {shown}", flush=True)
    ratio = np.median(np.divide(rates["int8"], rates["float"]))
    print(f"median ratio of the speeds: {ratio:.2f}")
    measured = []
    for request, (completion,) in zip(requests, drawn["float"], strict=True):
        p, q = (next_logprobs(m, request, completion) for m in models.values())
        measured.append(np.stack([jnp.sum(jnp.exp(p) * (p - q), -1), p.argmax(-1) == q.argmax(-1)]))
    divergence, same = np.concatenate(measured, axis=1)
    print(
        f"{len(same)} places: KL {divergence.mean():.5f} (largest {divergence.max():.3f}), "
        f"same likeliest token {same.mean():.1%}"
    )


def prompts(model: Any, task: str, questions: Mapping[str, str], name: str) -> list[Request]:
    """The task's generator prompts for questions by id, one key each; `name` is a part of it."""
    template = get_task(task).templates["generator"]
    requests = []
    for id, question in questions.items():
        prompt = render(template, question, {}, model.tokenizer, room=model.spec.context, where=id)
        requests.append(Request(prompt.ids, node_key(0, name, id)[None]))
    return requests


def next_logprobs(model: Any, request: Request, completion: Completion) -> jax.Array:
    """[T V] a model's log-probabilities of every token at each place of a completion."""
    tokens = (*request.prompt, *completion.tokens)
    row = np.zeros((1, -(-len(tokens) // 64) * 64), np.int32)
    row[0, : len(tokens)] = tokens
    return _logprobs(model.graph, model.params, row)[len(request.prompt) - 1 : len(tokens) - 1]


@partial(jax.jit, static_argnums=0)
def _logprobs(graph: nnx.GraphDef, params: nnx.State, tokens: jax.Array) -> jax.Array:
    """[T V] log-probabilities of the token after each."""
    return jax.nn.log_softmax(nnx.merge(graph, params)(tokens)[0])


if __name__ == "__main__":
    main()
