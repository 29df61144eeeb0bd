"""Hours of a run: how often each stage executes each program, times the program's seconds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from malt_jax.config.run import Config
from malt_jax.planning.abstract_programs import prefill_name, reference_name
from malt_jax.planning.sizes import Sizes
from malt_jax.planning.training_steps import largest
from malt_jax.planning.work import ASSUMED, Work, first_epoch, steps
from malt_jax.tree.policies import STAR

Executions = dict[str, float]
"""How often each program is executed, by its name."""


def stages(
    config: Config, work: Work, sizes: Sizes, programs: list[dict[str, Any]], chips: int
) -> list[dict[str, Any]]:
    """Hours and chip-hours of search, training and evaluation; none where a rate is unknown.

    `hours` is a lower bound, and `hours_at_efficiency` the same at a share of all rates.
    """
    seconds = {program["name"]: program["seconds"] for program in programs}
    if any(value is None for value in seconds.values()):
        return []
    result = []
    for name, counts in executions(config, work, sizes).items():
        spent = {program: count * seconds[program] for program, count in counts.items()}
        hours = sum(spent.values()) / 3600
        result.append(
            {
                "name": name,
                "hours": hours,
                "hours_at_efficiency": hours / ASSUMED.efficiency,
                "chip_hours": hours * chips,
                "seconds": spent,
            }
        )
    return result


def executions(config: Config, work: Work, sizes: Sizes) -> dict[str, Executions]:
    """How often each stage of the whole run executes each program."""
    blocks = math.ceil(work.train_questions / config.search.block)
    search: Executions = defaultdict(float)
    for role in work.roles:
        last_steps = blocks * role.longest
        counts = _sampling(sizes, role.parts, role.nodes, role.completion, last_steps)
        for program, count in counts.items():
            search[program] += count
    last = work.roles[-1]
    # A system asks for up to three kinds of turns per role (its own, retries, debates), each in
    # blocks of its own. Systems share few prompts, so each completion prefills all of its prompt.
    eval_blocks = 3 * len(work.roles) * math.ceil(work.eval_questions / config.eval.block)
    mean = work.eval_tokens / max(work.eval_calls, 1)
    prompts = [(work.eval_calls, last.prompt)]
    evaluation = _sampling(sizes, prompts, work.eval_calls, mean, eval_blocks * last.longest)
    return {
        "search": _times(config.rounds, search),
        "training": _times(config.rounds, _training(config, work, sizes)),
        "evaluation": evaluation,
    }


def _sampling(
    sizes: Sizes,
    parts: Iterable[tuple[int, int]],
    completions: int,
    mean: float,
    last_steps: int,
) -> Executions:
    """Prefill calls and decode steps of completions of `mean` tokens.

    While completions wait, finished rows are refilled and a step gives a token in every row. The
    last completions of each block have nothing queued after them: at most `last_steps` in all.
    """
    calls = sizes.prefill
    filled = sum(count * math.ceil(tokens / calls.tokens) for count, tokens in parts)
    # A chunk is computed whole, however few of its tokens are real. Calls are counted at their
    # larger size, which the sampler takes while enough prompts wait.
    return {
        prefill_name(calls.counts[-1]): filled / calls.counts[-1],
        "decode": completions * mean / sizes.shapes.rows + last_steps,
    }


def _training(config: Config, work: Work, sizes: Sizes) -> Executions:
    counts: Executions = {}
    for phase, plan in sizes.steps.items():
        examples = [
            (role.examples[phase], config.training_of(role.name).phase(phase))
            for role in work.roles
            if phase in role.examples
        ]
        star = config.training_of(STAR).sft
        examples += [(work.star, star)] if phase == "sft" and work.star else []
        # A step counts by its own tokens, in micro-batches of the shape that the plan compiles.
        shape = largest(plan)
        taken = scored = 0.0
        for count, fields in examples:
            micros = sizes.step_tokens[fields] / (shape.rows * shape.time)
            taken += steps(count, fields) * micros
            scored += first_epoch(count, fields) * micros
        counts[f"{phase} step"] = taken
        if phase == "sft":
            continue
        # The reference's log-probabilities are computed once per example, whatever the number of
        # epochs. KTO scores mismatched completions as well: by the reference and in every step.
        counts[reference_name(phase)] = scored + 2 * taken if phase == "kto" else scored
    return counts


def _times(rounds: int, counts: Executions) -> Executions:
    return {program: rounds * count for program, count in counts.items()}
