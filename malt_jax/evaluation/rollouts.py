"""Running systems on questions: turn by turn over all of them at once, shared work done once.

Two systems whose turns so far used the same policies on the same question have the same prompt, the
same key and so the same completion: it is drawn once and counted for both. Keys depend on the
seed, the question, the draw and the turn, not on the system, so systems are compared on common
random numbers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from malt_jax.evaluation.statistics import majority_vote
from malt_jax.evaluation.systems import System, Turn
from malt_jax.sampling.request import Completion, Request, SamplingParams
from malt_jax.tasks.base import Grade, Grader, Question
from malt_jax.tree.expand import completion_text, sampling_params
from malt_jax.tree.keys import node_key
from malt_jax.tree.prompts import Prompt, placeholders, render

if TYPE_CHECKING:
    from malt_jax.sampling.sampler import Sampler


class Policy(NamedTuple):
    """Weights under a name: equal identities mean equal weights."""

    identity: str
    adapter: Any


class Call(NamedTuple):
    """What determines a completion, and therefore when two systems share one."""

    identity: str
    settings: SamplingParams
    prompt: Prompt
    key: tuple[str, int, int, int]
    """Question id, draw, agent, turn."""


class Drawn(NamedTuple):
    completion: Completion
    text: str
    seconds: float


@dataclass
class Speaker:
    """One agent of one draw of one system on one question, and what it has said."""

    system: System
    question: Question
    draw: int
    agent: int
    said: dict[str, str] = field(default_factory=dict)
    """Texts by role, the latest last."""
    turns: list[dict[str, Any]] = field(default_factory=list)

    @property
    def group(self) -> tuple[str, str, int]:
        return self.system.name, self.question.id, self.draw


@dataclass(frozen=True)
class Stage:
    """What runs the calls: the sampler with its policies, the tokenizer, the grader, the rules."""

    sampler: Sampler
    policies: Mapping[tuple[str, str], Policy]
    """By (policy, role)."""
    tokenizer: Any
    grader: Grader
    seed: int
    context: int
    overflow: str = "refuse"
    on_calls: Callable[[str, int], None] | None = None
    """Told the turn with its policy, and the number of calls, before each batch."""


def run_systems(
    systems: Sequence[System], questions: Sequence[Question], stage: Stage
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """Records of every system, question and draw, and each system's seconds a question and draw.

    A call's seconds are its share, by tokens, of the batch it was drawn in; a shared call counts
    in full for every system that uses it.
    """
    speakers = [
        Speaker(system, question, draw, agent)
        for system in systems
        for question in questions
        for draw in range(system.draws)
        for agent in range(system.agents)
    ]
    seconds: dict[str, float] = defaultdict(float)
    for step in range(max(len(system.turns) for system in systems)):
        _take_turn([s for s in speakers if step < len(s.system.turns)], step, stage, seconds)
    records: dict[str, list[dict[str, Any]]] = {system.name: [] for system in systems}
    for agents in _grouped(speakers).values():
        records[agents[0].system.name].append(_record(agents))
    shares = {s.name: seconds[s.name] / (len(questions) * s.draws) for s in systems}
    return records, shares


def _take_turn(
    speakers: Sequence[Speaker], step: int, stage: Stage, seconds: dict[str, float]
) -> None:
    """Every speaker's turn number `step`; each distinct call is drawn once."""
    latest = {
        key: [next(reversed(a.said.values()), "") for a in agents]
        for key, agents in _grouped(speakers).items()
    }
    calls = []
    for speaker in speakers:
        turn = speaker.system.turns[step]
        others = [t for a, t in enumerate(latest[speaker.group]) if a != speaker.agent]
        calls.append(_call(speaker, turn, step, others, stage))
    drawn = _draw(calls, stage)
    graded = _grade(
        (
            (speaker.question, drawn[call].text)
            for speaker, call in zip(speakers, calls, strict=True)
            if speaker.system.turns[step].role.config.answers
        ),
        stage.grader,
    )
    for speaker, call in zip(speakers, calls, strict=True):
        turn, result = speaker.system.turns[step], drawn[call]
        grade = graded.get((speaker.question.id, result.text)) if turn.role.config.answers else None
        speaker.said.pop(turn.role.name, None)  # said again: it becomes the latest
        speaker.said[turn.role.name] = result.text
        speaker.turns.append(
            {
                "role": turn.role.name,
                "policy": turn.policy,
                "prompt": call.prompt.text,
                "text": result.text,
                "tokens": len(result.completion.tokens),
                "logprob": round(float(np.sum(result.completion.logprobs)), 4),
                "finish": result.completion.finish,
                "parsed": grade.parsed if grade else None,
                "correct": bool(grade.correct) if grade else None,
            }
        )
        seconds[speaker.system.name] += result.seconds


def _call(speaker: Speaker, turn: Turn, step: int, others: list[str], stage: Stage) -> Call:
    # A role that was removed from the chain leaves its place in later prompts empty.
    known = {*speaker.said, "previous", "question"}
    absent = {name: "" for name in placeholders(turn.role.template) if name not in known}
    prompt = render(
        turn.role.template,
        speaker.question.text,
        speaker.said,
        stage.tokenizer,
        room=stage.context - turn.role.config.max_new_tokens,
        overflow=stage.overflow,  # type: ignore[arg-type]
        where=f"{speaker.question.id}, {turn.role.name}",
        extra={**absent, **_others(others)},
    )
    identity = stage.policies[turn.policy, turn.role.name].identity
    key = (speaker.question.id, speaker.draw, speaker.agent, step)
    return Call(identity, sampling_params(turn.role, stage.tokenizer.end_ids), prompt, key)


def _others(texts: Sequence[str]) -> dict[str, str]:
    """What a debate template may name: `{others}`, one a line, or `{other_1}`, `{other_2}`, ..."""
    return {"others": "\n".join(texts), **{f"other_{i}": t for i, t in enumerate(texts, start=1)}}


def _draw(calls: Iterable[Call], stage: Stage) -> dict[Call, Drawn]:
    """Every distinct call's completion; calls of one prompt share its prefix."""
    adapters = {policy.identity: policy.adapter for policy in stage.policies.values()}
    batches: dict[tuple[str, SamplingParams], dict[tuple, list[Call]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for call in dict.fromkeys(calls):
        batches[call.identity, call.settings][call.key[0], call.prompt.ids].append(call)
    drawn = {}
    for (identity, how), groups in batches.items():
        if stage.on_calls:
            step = next(iter(groups.values()))[0].key[3]
            stage.on_calls(f"turn {step + 1}, by {identity}", sum(map(len, groups.values())))
        requests = [
            Request(
                prompt=ids, keys=np.stack([node_key(stage.seed, "eval", *c.key) for c in group])
            )
            for (_, ids), group in groups.items()
        ]
        started = time.perf_counter()
        completions = stage.sampler.sample(requests, how, adapter=adapters[identity])
        elapsed = time.perf_counter() - started
        total = max(1, sum(len(c.tokens) for group in completions for c in group))
        for group, results in zip(groups.values(), completions, strict=True):
            for call, completion in zip(group, results, strict=True):
                text = completion_text(completion, stage.tokenizer.end_ids, stage.tokenizer)
                share = elapsed * len(completion.tokens) / total
                drawn[call] = Drawn(completion, text, share)
    return drawn


def _grade(answers: Iterable[tuple[Question, str]], grader: Grader) -> dict[tuple[str, str], Grade]:
    """Grades by (question id, text), each distinct one once."""
    distinct = {(question.id, text): (text, question) for question, text in answers}
    texts, questions = [t for t, _ in distinct.values()], [q for _, q in distinct.values()]
    return dict(zip(distinct, grader.grade(texts, questions), strict=True))


def _record(agents: Sequence[Speaker]) -> dict[str, Any]:
    """One draw's record; the prediction is the last answering turn's, by majority over agents."""
    finals = [next(t for t in reversed(a.turns) if t["correct"] is not None) for a in agents]
    winner = finals[majority_vote([final["parsed"] for final in finals]).draw]
    turns = [turn for agent in agents for turn in agent.turns]
    return {
        "question_id": agents[0].question.id,
        "draw": agents[0].draw,
        "prediction": winner["parsed"],
        "correct": winner["correct"],
        "calls": len(turns),
        "tokens": sum(turn["tokens"] for turn in turns),
        "turns": turns,
    }


def _grouped(speakers: Iterable[Speaker]) -> dict[tuple[str, str, int], list[Speaker]]:
    groups: dict[tuple[str, str, int], list[Speaker]] = defaultdict(list)
    for speaker in speakers:
        groups[speaker.group].append(speaker)
    return groups
