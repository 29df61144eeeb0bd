"""Hours of a run: how often each program runs, by the seconds it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from malt_jax.config.run import Config
from malt_jax.planning.chips import Target
from malt_jax.planning.programs import prefill_name
from malt_jax.planning.sizes import Sizes, micro_batches
from malt_jax.planning.work import Work, steps
from malt_jax.training.plan import Plan

Head = tuple[int, int]
"""How many prompts' parts of how many tokens are computed."""


def stages(
    config: Config, work: Work, sizes: Sizes, programs: list[dict[str, Any]], target: Target
) -> list[dict[str, Any]]:
    """Hours and chip-hours of search, training and evaluation; none where a rate is unknown."""
    time = {program["name"]: program["seconds"] for program in programs}
    if any(value is None for value in time.values()):
        return []
    found = {
        "search": _search(config, work, sizes, time),
        "training": _training(config, work, sizes, time),
        "evaluation": _evaluation(config, work, sizes, time),
    }
    return [
        {"name": name, "hours": sum(parts.values()) / 3600}
        | {"chip_hours": sum(parts.values()) / 3600 * target.count}
        | {"seconds": parts}
        for name, parts in found.items()
    ]


def _search(config: Config, work: Work, sizes: Sizes, time: dict[str, float]) -> dict[str, float]:
    blocks = math.ceil(work.train_questions / config.search.block)
    roles = [
        _sampling(sizes, time, r.nodes, r.completion, r.longest, r.heads, blocks)
        for r in work.roles
    ]
    return {name: config.rounds * sum(part[name] for part in roles) for name in roles[0]}


def _evaluation(
    config: Config, work: Work, sizes: Sizes, time: dict[str, float]
) -> dict[str, float]:
    last, turns = work.roles[-1], 3 * len(work.roles)
    blocks = math.ceil(work.eval_questions / config.eval.block) * turns
    mean = work.eval_tokens / max(work.eval_calls, 1)
    # Every call computes its question and the turns before it: systems share little.
    heads = ((work.eval_calls, last.prompt),)
    return _sampling(sizes, time, work.eval_calls, mean, last.longest, heads, blocks)


def _sampling(
    sizes: Sizes,
    time: dict[str, float],
    completions: int,
    mean: float,
    longest: int,
    heads: Iterable[Head],
    blocks: int,
) -> dict[str, float]:
    """Seconds of prefill, and of decoding while the rows are full and while the last ones end."""
    rows, lanes = sizes.shapes.rows, sizes.lanes
    most = lanes.counts[-1]
    filled = sum(count * math.ceil(tokens / lanes.tokens) for count, tokens in heads)
    return {
        "prefill": filled / most * time[prefill_name(most)],
        "decode": completions * mean / rows * time["decode"],
        "last completions": blocks * longest * time["decode"],
    }


def _training(config: Config, work: Work, sizes: Sizes, time: dict[str, float]) -> dict[str, float]:
    sft, dpo = config.train.sft, config.train.dpo
    sft_steps = sum(steps(role.sft, sft) for role in work.roles) + steps(work.star, sft)
    dpo_steps = sum(steps(role.pairs, dpo) for role in work.roles)
    scored = sum(math.ceil(role.pairs / dpo.batch_size) for role in work.roles)
    seconds = {
        "sft": sft_steps * _step_seconds(sizes.sft, time["sft step"]),
        "dpo": dpo_steps * _step_seconds(sizes.dpo, time["dpo step"]),
        "reference": scored * _step_seconds(sizes.dpo, time["reference"]),
    }
    return {name: config.rounds * value for name, value in seconds.items()}


def _step_seconds(plan: Plan, largest: float) -> float:
    """Seconds of a typical step: its micro-batches in proportion to the largest one's tokens."""
    tokens = list(micro_batches(plan))
    return largest * sum(tokens) / max(tokens)
