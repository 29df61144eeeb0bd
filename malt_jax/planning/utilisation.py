"""Model-flops utilisation: the model's own products, as a share of the devices' published rate.

Only what the model needs counts: no padding, nothing that is recomputed, and a shared prompt once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from malt_jax.data.examples import Example
from malt_jax.models.spec import ModelSpec
from malt_jax.planning.chips import peak_flops
from malt_jax.planning.formula import active_weights

Group = tuple[int, Sequence[int]]
"""Tokens of a prompt, and of each completion that continues it."""


def training_flops(
    spec: ModelSpec, groups: Iterable[Group], passes: int = 0, *, full: bool = False
) -> float:
    """Operations of training on these completions, with each group's prompt computed once.

    Forward and backward to the activations, which is two passes, and a third one to the weights in
    full fine-tuning; logits at completion tokens; scores and values of visible keys (three passes);
    and `passes` more forward passes, of a reference. An adapter's own products are left out.
    """
    heads, weights = spec.heads * spec.head_dim, spec.num_layers * active_weights(spec)
    total = 0.0
    for prompt, branches in groups:
        tokens = prompt + sum(branches)
        # Pairs of a query and a key that it may see: half of the square within a part, and all of
        # the prompt for each completion token.
        visible = prompt**2 / 2 + sum(prompt * c + c**2 / 2 for c in branches)
        linear = 2.0 * (weights * tokens + spec.d_model * spec.vocab * sum(branches))
        # Two products, scores and the mix of values, at two operations each.
        attention = 4.0 * spec.num_layers * heads * visible
        total += (3 if full else 2) * linear + 3 * attention + passes * (linear + attention)
    return total


def training_utilisation(spec: ModelSpec, examples: Sequence[Example], full: bool) -> float | None:
    """The utilisation at one useful token per second; None where no rate is known.

    Useful tokens count a prompt once for every completion. A lower bound: a prompt is computed once
    in every batch that it is in, and counts here once for all.
    """
    peak = peak_flops()
    if peak is None:
        return None
    prompts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for example in examples:
        prompts[tuple(example.prompt_ids)] += map(len, example.completions)
    groups = [(len(prompt), lengths) for prompt, lengths in prompts.items()]
    useful = sum(prompt + length for prompt, lengths in groups for length in lengths)
    return training_flops(spec, groups, full=full) / max(useful, 1) / peak


def sampling_utilisation(spec: ModelSpec, stats: Mapping[str, Any]) -> float | None:
    """The sampler's utilisation by its `Stats`; None where no rate is known.

    A lower bound: attention's own products are left out, because the stats know no lengths.
    """
    peak, layers = peak_flops(), spec.num_layers * active_weights(spec)
    if peak is None or not stats["seconds"]:
        return None
    # Logits are computed for tokens that are drawn, and not for those of prompts.
    drawn = (layers + spec.d_model * spec.vocab) * stats["tokens_generated"]
    return 2.0 * (drawn + layers * stats["prefill_tokens_computed"]) / stats["seconds"] / peak
