"""Rollouts: every system answers every question, one turn of all of them at a time.

Two systems whose turns so far used the same policies on the same question have the same prompt, the
same key and therefore the same completion: it is sampled once and counted for both. Keys depend on
the seed, the question, the draw, the agent and the turn, not on the system, so systems are compared
on common random numbers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from malt_jax.credit.verdict import Reader
from malt_jax.evaluation.records import DrawRecord, TurnRecord
from malt_jax.evaluation.statistics import draws_to_certainty, majority_vote
from malt_jax.evaluation.support import support
from malt_jax.evaluation.systems import System
from malt_jax.sampling.request import Completion, Request, SamplingParams
from malt_jax.tasks.base import NO_ANSWER, Grade, Grader, Question
from malt_jax.tree.expand import sampling_params
from malt_jax.tree.keys import node_key
from malt_jax.tree.prompts import Prompt, render, unknown
from malt_jax.tree.roles import of_role
from malt_jax.tree.thoughts import Said, read_completion

if TYPE_CHECKING:
    from malt_jax.models.thoughts import AnyThoughts
    from malt_jax.sampling.sampler import Sampler


@dataclass(frozen=True)
class RolloutContext:
    """What rollouts need besides systems and questions: sampler, policies, tokenizer and grader."""

    sampler: Sampler | Mapping[str, Sampler]
    """That of the model of all roles, or each role's by name; so are `tokenizer` and `context`."""
    identities: Mapping[tuple[str, str], str]
    """The identity of the weights of each (policy, role); equal identities mean equal weights."""
    weights: Callable[[str], Any]
    """Loads the weights of an identity, an adapter or a whole model; None for the base. They are
    asked for when a batch needs them, and no reference is kept after it."""
    tokenizer: Any
    grader: Grader
    seed: int
    context: int | Mapping[str, int]
    """The model's longest sequence in tokens."""
    overflow: str = "refuse"
    readers: Mapping[str, Reader] = field(default_factory=dict)
    """What reads the verdicts of critiques, by role."""
    on_batch: Callable[[str, int], None] | None = None
    """Called before each batch with a name for it and its number of completions."""


class UniqueCall(NamedTuple):
    """One completion to sample: systems share it if all of this is equal."""

    identity: str
    params: SamplingParams
    prompt: Prompt
    key: tuple[str, int, int, int]
    """Question id, draw, agent, turn."""
    thoughts: AnyThoughts | None
    """How completions of this prompt write thoughts; it follows from the prompt."""
    role: str = ""
    """The role that speaks, where roles have models of their own; else all share their calls."""


class Sampled(NamedTuple):
    """The completion of a call, and its share of the batch's time."""

    completion: Completion
    said: Said
    seconds: float

    @property
    def text(self) -> str:
        """The completion without its thought."""
        return self.said.text


@dataclass
class Agent:
    """One agent of one draw of one system on one question, and its turns so far."""

    system: System
    question: Question
    draw: int
    number: int
    texts: dict[str, str] = field(default_factory=dict)
    """The latest text of each role, in the order they were written."""
    turns: list[TurnRecord] = field(default_factory=list)

    @property
    def group(self) -> tuple[str, str, int]:
        """The draw it belongs to; agents of one draw read each other and vote."""
        return self.system.name, self.question.id, self.draw


def run_systems(
    systems: Sequence[System],
    questions: Sequence[Question],
    context: RolloutContext,
    stop_when_certain: bool = False,
) -> tuple[dict[str, list[DrawRecord]], dict[str, float]]:
    """The draws of every system on every question, and each system's mean seconds per draw.

    A call's seconds are its share, by tokens, of the batch in which it was sampled; a shared call
    counts in full for every system that uses it.

    `stop_when_certain`: a question's draws end once no further one can change a vote of the
    system. Those left out have records without turns; the others are what they are without it.
    """
    found: dict[tuple[str, str], list[DrawRecord]] = {
        (system.name, question.id): [] for system in systems for question in questions
    }
    seconds: dict[tuple[str, int], float] = defaultdict(float)
    # A call of an earlier wave may be a later one's of another system.
    earlier: dict[UniqueCall, Sampled] = {}
    while wave := _wave(systems, questions, found, stop_when_certain):
        # Turn by turn over all systems and not system by system: only so do those with a common
        # beginning meet in one batch and share its calls.
        for turn in range(max(len(agent.system.turns) for agent in wave)):
            taking = [agent for agent in wave if turn < len(agent.system.turns)]
            _take_turn(taking, turn, context, seconds, earlier if stop_when_certain else {})
        for (name, question_id, _), group in _by_draw(wave).items():
            found[name, question_id].append(_record(group))
    draws: dict[str, list[DrawRecord]] = {}
    means = {}
    for system in systems:
        own = [found[system.name, question.id] for question in questions]
        # What only some questions draw takes longer: these are the hard ones.
        common = min(map(len, own))
        total = sum(seconds[system.name, draw] for draw in range(common))
        means[system.name] = total / (common * len(questions))
        draws[system.name] = [
            record
            for drawn, question in zip(own, questions, strict=True)
            for record in _with_left_out(drawn, question, system.draws)
        ]
    return draws, means


def _wave(
    systems: Sequence[System],
    questions: Sequence[Question],
    found: Mapping[tuple[str, str], Sequence[DrawRecord]],
    stop_when_certain: bool,
) -> list[Agent]:
    """The agents of the next draws: all that are missing, or first as many as may be enough."""
    agents = []
    for system in systems:
        for question in questions:
            drawn = [record.prediction for record in found[system.name, question.id]]
            more = system.draws - len(drawn)
            if stop_when_certain:
                fewest = draws_to_certainty(drawn, system.draws)
                # Who is not certain after as few as may do takes all the others at once: each wave
                # waits for its longest completion, which costs more than it could still save.
                more = fewest if not drawn else more if fewest else 0
            agents += [
                Agent(system, question, draw, number)
                for draw in range(len(drawn), len(drawn) + more)
                for number in range(system.agents)
            ]
    return agents


def _with_left_out(
    drawn: Sequence[DrawRecord], question: Question, draws: int
) -> Iterator[DrawRecord]:
    yield from drawn
    for draw in range(len(drawn), draws):
        yield DrawRecord.left_out(question.id, draw)


def _take_turn(
    agents: Sequence[Agent],
    number: int,
    context: RolloutContext,
    seconds: dict[tuple[str, int], float],
    sampled: dict[UniqueCall, Sampled],
) -> None:
    """Turn `number` of every agent: unique calls are sampled once, equal answers graded once.

    `sampled` has the calls of earlier waves, and then also those of this turn. To `seconds`, by
    system and draw, those of this turn are added.
    """
    # What everybody said before this turn: nobody may read what is written during it.
    latest = {
        key: [next(reversed(agent.texts.values()), "") for agent in group]
        for key, group in _by_draw(agents).items()
    }
    # A group lists its agents by number, as `run_systems` made them.
    calls = []
    for agent in agents:
        others = [text for i, text in enumerate(latest[agent.group]) if i != agent.number]
        calls.append(_call(agent, number, others, context))
    # Equal calls may be turns of different roles; either will do.
    kinds = {
        call.prompt.ids: agent.system.turns[number].role.name
        for agent, call in zip(agents, calls, strict=True)
    }
    sampled |= _sample((call for call in calls if call not in sampled), kinds, context)
    answers = [
        (agent.question, sampled[call].text)
        for agent, call in zip(agents, calls, strict=True)
        if agent.system.turns[number].role.config.answers and not sampled[call].said.unclosed
    ]
    grades = _grade(answers, context.grader)
    # Equal calls may be turns of different roles, which are read by their own readers.
    critiques = {
        (role.name, call)
        for agent, call in zip(agents, calls, strict=True)
        if (role := agent.system.turns[number].role).name in context.readers
    }
    supports = {(name, call): _support(name, sampled[call], context) for name, call in critiques}
    for agent, call in zip(agents, calls, strict=True):
        turn, result = agent.system.turns[number], sampled[call]
        answers_here = turn.role.config.answers
        grade = None
        if answers_here:
            unclosed = result.said.unclosed
            grade = NO_ANSWER if unclosed else grades[agent.question.id, result.text]
        agent.texts.pop(turn.role.name, None)  # a role that answers again becomes the latest
        agent.texts[turn.role.name] = turn.role.passed_on(result.text, result.said.thought)
        agent.turns.append(
            TurnRecord(
                role=turn.role.name,
                policy=turn.policy,
                prompt=call.prompt.text,
                text=result.text,
                tokens=len(result.completion.tokens),
                logprob=round(float(np.sum(result.completion.logprobs)), 4),
                finish=result.completion.finish,
                parsed=grade.parsed if grade else None,
                correct=bool(grade.correct) if grade else None,
                support=supports.get((turn.role.name, call)),
                thought=result.said.thought,
                unclosed=result.said.unclosed,
            )
        )
        seconds[agent.system.name, agent.draw] += result.seconds


def _call(agent: Agent, number: int, others: list[str], context: RolloutContext) -> UniqueCall:
    """The call of an agent's turn; `others` are the latest texts of its draw's other agents."""
    role, policy = agent.system.turns[number].role, agent.system.turns[number].policy
    # A role that was removed from the chain leaves its place in later prompts empty.
    known = {*agent.texts, "previous", "question"}
    absent = dict.fromkeys(unknown(role.template, known), "")
    # A debate template names the others' texts: `{others}`, one per line, or `{other_1}`, ...
    debate = {"others": "\n".join(others)}
    debate |= {f"other_{i}": text for i, text in enumerate(others, start=1)}
    tokenizer = role.tokenizer(of_role(context.tokenizer, role.name))
    prompt = render(
        role.template,
        agent.question.text,
        agent.texts,
        tokenizer,
        room=of_role(context.context, role.name) - role.config.max_new_tokens,
        overflow=context.overflow,  # type: ignore[arg-type]
        where=f"{agent.question.id}, {role.name}",
        extra={**absent, **debate},
    )
    identity = context.identities[policy, role.name]
    # At temperature 0 every draw is the same, so that it is sampled once.
    draw = agent.draw if role.config.temperature else 0
    key = (agent.question.id, draw, agent.number, number)
    params = sampling_params(role, tokenizer)
    speaks = role.name if isinstance(context.sampler, Mapping) else ""
    return UniqueCall(identity, params, prompt, key, tokenizer.thoughts, speaks)


def _sample(
    calls: Iterable[UniqueCall], kinds: Mapping[tuple[int, ...], str], context: RolloutContext
) -> dict[UniqueCall, Sampled]:
    """Every unique call's completion, one identity of weights after the other.

    `kinds`: by the ids of a prompt, which role it is for.
    """
    # By base model and weights first, so that each set is loaded once per turn. `fromkeys` removes
    # repeats and keeps the order, so that a run that is repeated forms the same batches.
    batches: dict[tuple[str, str], dict[SamplingParams, list[UniqueCall]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for call in dict.fromkeys(calls):
        batches[call.role, call.identity][call.params].append(call)
    sampled: dict[UniqueCall, Sampled] = {}
    # A base that has to be loaded again is loaded for all of its role's weights at once.
    for role, identity in sorted(batches, key=lambda key: key[0]):
        sampled |= _sample_with(role, identity, batches[role, identity].values(), kinds, context)
    return sampled


def _sample_with(
    role: str,
    identity: str,
    batches: Iterable[Sequence[UniqueCall]],
    kinds: Mapping[tuple[int, ...], str],
    context: RolloutContext,
) -> dict[UniqueCall, Sampled]:
    """The completions of one identity's batches; `role` as in `UniqueCall`, `kinds` in `_sample`.

    Its weights are a local variable here, so they are free before the next identity's are loaded.
    """
    weights = context.weights(identity)
    sampler, tokenizer = of_role(context.sampler, role), of_role(context.tokenizer, role)
    sampled: dict[UniqueCall, Sampled] = {}
    for batch in batches:
        if context.on_batch:
            context.on_batch(f"turn {batch[0].key[3] + 1}, by {identity}", len(batch))
        # Draws that continue one prompt are one request, so the sampler prefills it once.
        groups: dict[tuple, list[UniqueCall]] = defaultdict(list)
        for call in batch:
            groups[call.key[0], call.prompt.ids].append(call)
        # The word `eval` keeps these keys apart from those of the search.
        requests = [
            Request(
                ids,
                np.stack([node_key(context.seed, "eval", *call.key) for call in group]),
                kind=kinds[ids],
            )
            for (_, ids), group in groups.items()
        ]
        started, compiled = time.perf_counter(), sampler.stats.compile_seconds
        completions = sampler.sample(requests, batch[0].params, adapter=weights)
        # Programs are compiled for whichever system needs them first, and are not its cost.
        compiled = sampler.stats.compile_seconds - compiled
        elapsed = time.perf_counter() - started - compiled
        total = max(1, sum(len(c.tokens) for group in completions for c in group))
        for group, results in zip(groups.values(), completions, strict=True):
            for call, completion in zip(group, results, strict=True):
                ids, finish = completion.tokens, completion.finish
                said = read_completion(ids, finish, tokenizer, call.thoughts)
                sampled[call] = Sampled(completion, said, elapsed * len(ids) / total)
    return sampled


def _support(role: str, result: Sampled, context: RolloutContext) -> float | None:
    """How far a critique supports the answer it read; None without a verdict."""
    read = context.readers.get(role)
    verdict = read(result.text) if read else None
    if verdict is None:
        return None
    # The tokens of the text alone, whose characters are counted through them.
    answer = replace(
        result.completion,
        tokens=result.completion.tokens[result.said.thought_tokens :],
        logprobs=result.completion.logprobs[result.said.thought_tokens :],
    )
    return support(verdict, answer, of_role(context.tokenizer, role))


def _grade(answers: Iterable[tuple[Question, str]], grader: Grader) -> dict[tuple[str, str], Grade]:
    """Grades by question id and text, each distinct answer once."""
    distinct = {(question.id, text): (text, question) for question, text in answers}
    texts, questions = [t for t, _ in distinct.values()], [q for _, q in distinct.values()]
    return dict(zip(distinct, grader.grade(texts, questions), strict=True))


def _record(agents: Sequence[Agent]) -> DrawRecord:
    """The record of one draw; its prediction is the majority of its agents' last answers."""
    # Each system has a turn that answers (`make_systems` refuses others), so `next` finds one.
    finals = [next(t for t in reversed(a.turns) if t.correct is not None) for a in agents]
    winner = finals[majority_vote([final.parsed for final in finals]).draw]
    return DrawRecord(
        agents[0].question.id,
        agents[0].draw,
        winner.parsed,
        bool(winner.correct),
        tuple(turn for agent in agents for turn in agent.turns),
    )


def _by_draw(agents: Iterable[Agent]) -> dict[tuple[str, str, int], list[Agent]]:
    groups: dict[tuple[str, str, int], list[Agent]] = defaultdict(list)
    for agent in agents:
        groups[agent.group].append(agent)
    return groups
