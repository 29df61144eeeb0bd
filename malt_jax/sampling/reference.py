"""A plain sampler: no cache, no batching, one forward pass per token. It defines what is right.

`sampler.Sampler` draws the same tokens from the same keys, apart from draws within rounding error
of the border between two tokens. The tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from malt_jax.models.lora import Adapter
from malt_jax.sampling.request import Completion, Request, SamplingParams, ThoughtBudget


def sample(
    model: Any,
    requests: Sequence[Request],
    params: SamplingParams,
    adapter: Adapter | nnx.State | None = None,
) -> list[list[Completion]]:
    """One completion per key of every request, in their order."""
    weights, lora = (adapter, None) if isinstance(adapter, nnx.State) else (model.params, adapter)
    # One padded length for all calls, so that the forward pass compiles once.
    longest = max(len(request.prompt) for request in requests) + params.max_new_tokens
    padded_length = -(-longest // 64) * 64

    def next_logits(tokens: Sequence[int]) -> Float[np.ndarray, "V"]:
        padded = np.zeros((1, padded_length), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = _forward(model.graph, weights, lora, padded)
        return np.asarray(logits[0, len(tokens) - 1], np.float64)

    def complete(prompt: Sequence[int], key: Key[Array, ""]) -> Completion:
        tokens: list[int] = []
        logprobs: list[float] = []
        while True:
            # 1. The logits of the next token, given the prompt and everything drawn so far.
            logits = next_logits([*prompt, *tokens])
            # 2. One uniform number, from the completion's key and the token's position, picks it.
            uniform = float(jax.random.uniform(jax.random.fold_in(key, len(tokens))))
            token = pick(logits, uniform, params)
            #    A thought that takes too long is closed in the model's place.
            token = _closing(tokens, params.thought).get(len(tokens), token)
            tokens.append(token)
            logprobs.append(float(logits[token] - np.logaddexp.reduce(logits)))
            # 3. An end token, then a stop text, then the length ends the completion.
            if token in params.end_ids:
                return Completion(tuple(tokens), tuple(logprobs), "eos")
            #    Texts count after the thought only.
            start = params.thoughts.answer_start(tokens) if params.thoughts else 0
            answer = model.tokenizer.decode(tokens[start:]) if start is not None else ""
            if any(text in answer for text in params.stop):
                return Completion(tuple(tokens), tuple(logprobs), "stop")
            if len(tokens) == params.max_new_tokens:
                return Completion(tuple(tokens), tuple(logprobs), "length")

    typed = partial(jax.random.wrap_key_data, impl="threefry2x32")
    return [[complete(r.prompt, key) for key in typed(jnp.asarray(r.keys))] for r in requests]


def pick(logits: Float[np.ndarray, "V"], uniform: float, params: SamplingParams) -> int:
    """The token at quantile `uniform` of the distribution after temperature, top-k and top-p."""
    if params.temperature == 0:
        return int(np.argmax(logits))
    scores = logits / params.temperature
    probs = np.exp(scores - scores.max())
    if 0 < params.top_k < len(probs):
        # The k-th largest is the threshold, so equal probabilities are kept or dropped together.
        probs[probs < np.sort(probs)[-params.top_k]] = 0
    if params.top_p < 1:
        largest_first = np.sort(probs)[::-1]
        mass = np.cumsum(largest_first)
        probs[probs < largest_first[np.argmax(mass >= params.top_p * mass[-1])]] = 0
    cumulative = np.cumsum(probs)
    return int(np.argmax(cumulative > uniform * cumulative[-1]))


def _closing(tokens: Sequence[int], budget: ThoughtBudget | None) -> dict[int, int]:
    """The tokens that close the thought, by their places, once these are the tokens so far."""
    if budget is None:
        return {}
    size = len(budget.end)
    for length in range(len(tokens) + 1):
        # A thought that has begun and not ended after `length` tokens, its budget used up.
        before = tokens[:length]
        ended = any(tuple(before[i : i + size]) == budget.end for i in range(length))
        first = next((token for token in before if token not in budget.blank), None)
        begun = budget.inside or first == budget.begin
        if begun and not ended and length >= budget.tokens:
            return dict(enumerate(budget.closing, start=length))
    return {}


@partial(jax.jit, static_argnums=0)
def _forward(graph: nnx.GraphDef, weights: Any, adapter: Adapter | None, tokens: jax.Array) -> Any:
    return nnx.merge(graph, weights)(tokens, adapter=adapter)
