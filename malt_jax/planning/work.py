"""What a run does, counted before it starts: completions, tokens and training examples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from malt_jax.config.pipeline import PHASES, RoleConfig, split_phases
from malt_jax.config.run import Config
from malt_jax.config.training import PhaseConfig
from malt_jax.errors import UserError

QUESTIONS = {
    "gsm8k": (7473, 1319),
    "gsm_symbolic": (7473, 5000),
    "gsm_symbolic_p1": (7473, 5000),
    "gsm_symbolic_p2": (7473, 2500),
    "svamp": (700, 300),
    "math": (7500, 5000),
    "math500": (7500, 500),
    "csqa": (9741, 1221),
    "mbpp": (374, 500),
    "humaneval": (374, 164),
}
"""(train, eval) questions of the published splits, for runs that use all of them."""
UNKNOWN_QUESTIONS = (1000, 200)
"""A guess, for tasks whose size only their files show."""


@dataclass(frozen=True)
class Assumptions:
    """What only the run itself can show. Every figure that depends on these is an estimate."""

    prompt_tokens: int = 192
    """Tokens of the first role's prompt: template and question."""
    completion_share: float = 0.5
    """Mean length of a completion, as a share of its `max_new_tokens`."""
    positive_share: float = 0.5
    """Share of nodes that become SFT examples."""
    paired_share: float = 0.5
    """Share of prefixes whose children differ in value, which a pair needs."""
    efficiency: float = 0.4
    """Share of the compiler's or the published rates that a whole run reaches. Nothing of it was
    measured on these devices; large trainings are published at 0.3 to 0.6 of their chips' rates."""


ASSUMED = Assumptions()


@dataclass(frozen=True)
class RoleWork:
    """One role's share of a round; token counts are means."""

    name: str
    prefixes: int
    """Distinct prompts."""
    nodes: int
    """Completions."""
    prompt: int
    """Tokens of a prompt."""
    parts: tuple[tuple[int, int], ...]
    """(count, tokens) of the distinct parts of prompts: siblings share what comes before them, so
    each question and each earlier turn is prefilled once."""
    completion: int
    longest: int
    """`max_new_tokens`."""
    examples: dict[str, int]
    """By phase of training."""


@dataclass(frozen=True)
class Work:
    """One round of a run, and its evaluation."""

    train_questions: int
    """Those of the slice (`search.shard`)."""
    eval_questions: int
    roles: tuple[RoleWork, ...]
    star: int
    """SFT examples of the STaR baseline."""
    eval_calls: int
    """Completions of all systems, as if none were shared between systems."""
    guessed: bool = False
    """Whether the number of questions is a guess."""

    def of_roles(self, names: Collection[str]) -> Work:
        """The share of some roles, those of one base model; all roles count alike in evaluation."""
        roles = tuple(role for role in self.roles if role.name in names)
        share = len(roles) / len(self.roles)
        # The STaR single agent is trained over the first role's model.
        star = self.star if self.roles[0] in roles else 0
        return replace(self, roles=roles, star=star, eval_calls=round(self.eval_calls * share))

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that the roles learn by, and SFT for the STaR baseline."""
        used = {"sft"} if self.star else set[str]()
        used = used.union(*(role.examples for role in self.roles))
        return tuple(phase for phase in PHASES if phase in used)

    @property
    def calls(self) -> int:
        return sum(role.nodes for role in self.roles)

    @property
    def tokens(self) -> int:
        return sum(role.nodes * role.completion for role in self.roles)

    @property
    def eval_tokens(self) -> int:
        # All roles count alike, though systems use some of them more often.
        mean = sum(role.completion for role in self.roles) / len(self.roles)
        return round(self.eval_calls * mean)


def count_work(config: Config) -> Work:
    """Counts the work of one round and of the evaluation."""
    task = config.task
    published, published_eval = QUESTIONS.get(task.name, UNKNOWN_QUESTIONS)
    # A published split has no more questions than this, and those set aside are not trained on. The
    # size of a user's own file is not known here.
    most = max(1, published - task.num_validation)
    train, evaluate = task.num_train or most, task.num_eval or published_eval
    if task.name in QUESTIONS:
        train = train if task.train_path else min(train, most)
        evaluate = evaluate if task.eval_path else min(evaluate, published_eval)
    known = task.name in QUESTIONS
    guessed = not (task.num_train or (known and not task.train_path))
    # Of a slice, as a run takes it. Of a guess every slice has a question.
    shard = config.search.shard
    index, count = map(int, shard.split("/"))
    train = train * index // count - train * (index - 1) // count
    if not train and not guessed:
        raise UserError(f"search.shard: {shard} selects no questions; give a smaller k.")
    train = max(1, train)
    if config.eval.split == "validation":
        evaluate = min(task.num_eval or task.num_validation, task.num_validation)
    else:
        guessed |= not (task.num_eval or (known and not task.eval_path))
    roles = tuple(_roles(config, train))
    # STaR trains a single agent, so only answers that the first role wrote can be examples.
    answers = roles[0].nodes if config.pipeline.roles[0].answers else 0
    star = round(ASSUMED.positive_share * answers)
    calls = evaluate * _calls_per_question(config)
    return Work(train, evaluate, roles, star, calls, guessed)


def _roles(config: Config, questions: int) -> Iterator[RoleWork]:
    # A tree of branching n has n nodes under each prefix: q, q n, q n^2 prefixes by depth.
    prefixes, prompt = questions, ASSUMED.prompt_tokens
    parts: tuple[tuple[int, int], ...] = ((questions, prompt),)
    for role in config.pipeline.roles:
        nodes = prefixes * role.branch
        completion = max(1, round(ASSUMED.completion_share * role.max_new_tokens))
        yield RoleWork(
            name=role.name,
            prefixes=prefixes,
            nodes=nodes,
            prompt=prompt,
            parts=parts,
            completion=completion,
            longest=role.max_new_tokens,
            examples=_examples(config, role, prefixes),
        )
        # A completion is the prefix of the next level, whose prompt has grown by it, less a thought
        # that is not passed on. Words that later templates add are not counted.
        thought = 0 if role.thinking.pass_on else role.thinking.budget
        read = max(1, round(ASSUMED.completion_share * (role.max_new_tokens - thought)))
        prefixes, prompt = nodes, prompt + read
        parts = (*parts, (nodes, read))


def _examples(config: Config, role: RoleConfig, prefixes: int) -> dict[str, int]:
    # A pair and an advantage need siblings that differ in value.
    contrasts = round(prefixes * ASSUMED.paired_share) if role.branch > 1 else 0
    # Most pairs where half of the siblings are positive and half negative.
    pairs = role.branch**2 // 4
    if config.data.pairs != "all":
        pairs = min(pairs, config.data.pairs_per_prefix)
    counts = {
        "sft": round(prefixes * role.branch * ASSUMED.positive_share),
        "dpo": contrasts * pairs,
        "kto": prefixes * role.branch,
        "pg": contrasts * role.branch,
    }
    return {phase: counts[phase] for phase in split_phases(role.train)}


def _calls_per_question(config: Config) -> int:
    """Completions per question, over all systems to measure."""
    from malt_jax.evaluation.systems import make_systems
    from malt_jax.tasks import get_task
    from malt_jax.tree.roles import make_chain

    task = config.task
    templates = get_task(task.name, grader=task.grader, allow_code=task.allow_code).templates
    systems = make_systems(config.eval, make_chain(config.pipeline, templates), templates)
    return sum(system.draws * system.calls for system in systems)


def steps(examples: int, config: PhaseConfig) -> int:
    """Optimiser steps of a phase; none without examples, because the phase is then left out."""
    if not examples:
        return 0
    # Rounded up in each epoch, because a batch does not go on into the next one.
    return config.loop.steps or config.epochs * math.ceil(examples / config.batch_size)


def first_epoch(examples: int, config: PhaseConfig) -> int:
    """Batches that hold each example of a phase once, without those that no step reaches."""
    batches = math.ceil(examples / config.batch_size)
    return min(batches, config.loop.steps) if config.loop.steps else batches
