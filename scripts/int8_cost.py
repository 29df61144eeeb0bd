"""What int8 weights and an int8 cache cost in accuracy, on a model of yours.

    python scripts/int8_cost.py DIR --questions 32 --new-tokens 96

Draws one solution per question with each setting, the same keys, and scores what was drawn with the
unrounded model in one uncached pass. Prints a Markdown table: how far the sampler's
log-probabilities are from the unrounded model's, in nats per token; how likely the unrounded model
finds what was drawn; and how many solutions are, token for token, those drawn without rounding.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from quantized_base import next_logprobs, prompts

import malt_jax as malt
from malt_jax.bench.inputs import word_problems
from malt_jax.config.sampler import SamplerConfig
from malt_jax.sampling.request import Completion, Request, SamplingParams
from malt_jax.sampling.sampler import Sampler

SETTINGS = {
    "exact": {},
    "cache int8": {"cache": "int8"},
    "weights int8": {"weights": "int8"},
    "both": {"cache": "int8", "weights": "int8"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a local Hugging Face directory")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.7)
    options = parser.parse_args()
    model = malt.load_model(options.model)
    questions = {question.id: question.text for question in word_problems(options.questions)}
    requests = prompts(model, "gsm8k", questions, "int8")
    params = SamplingParams(
        temperature=options.temperature,
        max_new_tokens=options.new_tokens,
        end_ids=tuple(model.tokenizer.end_ids),
    )
    print("| sampler | mean distance | largest | log-likelihood per token | same as exact |")
    print("| --- | ---: | ---: | ---: | ---: |")
    exact: list[tuple[int, ...]] = []
    for name, fields in SETTINGS.items():
        drawn = [d[0] for d in Sampler(model, SamplerConfig(**fields)).sample(requests, params)]
        exact = exact or [completion.tokens for completion in drawn]
        said = np.concatenate([completion.logprobs for completion in drawn])
        true = np.concatenate([rescored(model, r, c) for r, c in zip(requests, drawn, strict=True)])
        gap = np.abs(said - true)
        same = sum(c.tokens == tokens for c, tokens in zip(drawn, exact, strict=True))
        print(
            f"| {name} | {gap.mean():.2g} | {gap.max():.2g} | {true.mean():.4f} "
            f"| {same} of {len(drawn)} |",
            flush=True,
        )


def rescored(model: Any, request: Request, completion: Completion) -> np.ndarray:
    """The unrounded model's log-probability of each drawn token."""
    logprobs = np.asarray(next_logprobs(model, request, completion))
    return np.take_along_axis(logprobs, np.array(completion.tokens)[:, None], axis=1)[:, 0]


if __name__ == "__main__":
    main()
