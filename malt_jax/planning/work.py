"""What a run does, counted before it runs: calls, tokens and training steps, under assumptions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from malt_jax.config.pipeline import RoleConfig
from malt_jax.config.run import Config
from malt_jax.config.training import DpoConfig, SftConfig

QUESTIONS = {
    "gsm8k": (7473, 1319),
    "math": (7500, 5000),
    "csqa": (9741, 1221),
}
"""(train, eval) questions of the published splits, for runs that take all."""
UNKNOWN_QUESTIONS = (1000, 200)


@dataclass(frozen=True)
class Assumptions:
    """What only the run itself can tell. Every figure that follows from these is an estimate."""

    prompt_tokens: int = 192
    """Role prefix, template and question."""
    completion_share: float = 0.5
    """Mean length of a completion, of its `max_new_tokens`."""
    positive_share: float = 0.5
    """Nodes that become SFT examples."""
    paired_share: float = 0.5
    """Prefixes whose children are not all alike, which is what a pair needs."""


@dataclass(frozen=True)
class RoleWork:
    """One role's part of a round; tokens are means."""

    name: str
    prefixes: int
    nodes: int
    prompt: int
    heads: tuple[tuple[int, int], ...]
    """What has to be computed of the prompts when siblings share theirs: (how many, tokens)."""
    completion: int
    longest: int
    sft: int
    pairs: int


@dataclass(frozen=True)
class Work:
    """A whole run."""

    train_questions: int
    eval_questions: int
    roles: tuple[RoleWork, ...]
    star: int
    """SFT examples of the STaR baseline."""
    eval_calls: int
    """Completions of all systems, counted as if none could be shared between them."""

    @property
    def calls(self) -> int:
        return sum(role.nodes for role in self.roles)

    @property
    def tokens(self) -> int:
        return sum(role.nodes * role.completion for role in self.roles)

    @property
    def eval_tokens(self) -> int:
        mean = sum(role.completion for role in self.roles) / len(self.roles)
        return round(self.eval_calls * mean)


def count_work(config: Config, assume: Assumptions) -> Work:
    """The work of one round and the evaluation."""
    train, evaluate = QUESTIONS.get(config.task.name, UNKNOWN_QUESTIONS)
    train = (
        min(config.task.num_train or train, train)
        if config.task.name in QUESTIONS
        else (config.task.num_train or train)
    )
    evaluate = config.task.num_eval or evaluate
    roles = tuple(_roles(config, assume, train))
    star = round(assume.positive_share * roles[0].nodes)
    return Work(train, evaluate, roles, star, evaluate * _calls_a_question(config))


def _roles(config: Config, assume: Assumptions, questions: int) -> Iterator[RoleWork]:
    prefixes, before = questions, 0
    heads = ((questions, assume.prompt_tokens),)
    for role in config.pipeline.roles:
        nodes = prefixes * role.branch
        completion = max(1, round(assume.completion_share * role.max_new_tokens))
        pairs = round(prefixes * assume.paired_share) * config.data.pairs_per_prefix
        yield RoleWork(
            name=role.name,
            prefixes=prefixes,
            nodes=nodes,
            prompt=assume.prompt_tokens + before,
            heads=heads,
            completion=completion,
            longest=role.max_new_tokens,
            sft=round(nodes * assume.positive_share) if role.train != "none" else 0,
            pairs=pairs if role.train == "sft+dpo" and role.branch > 1 else 0,
        )
        prefixes, before = nodes, before + completion
        heads = (*heads, (nodes, completion))


def _calls_a_question(config: Config) -> int:
    """Completions a question over all systems to measure."""
    from malt_jax.evaluation.systems import make_systems
    from malt_jax.stages.session import load_task
    from malt_jax.tree.roles import make_pipeline

    templates = load_task(config).templates
    systems = make_systems(config.eval, make_pipeline(config.pipeline, templates), templates)
    return sum(system.draws * system.calls for system in systems)


def steps(examples: int, config: SftConfig | DpoConfig) -> int:
    """Optimiser steps of a phase."""
    return config.epochs * math.ceil(examples / config.batch_size)


def longest_prompt(roles: tuple[RoleConfig, ...], assume: Assumptions) -> int:
    """Tokens of the last role's prompt if every earlier turn is as long as it may be."""
    return assume.prompt_tokens + sum(role.max_new_tokens for role in roles[:-1])
