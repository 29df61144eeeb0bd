"""Running systems on questions: turn by turn over all of them at once, shared work done once.

Two systems whose turns so far used the same policies on the same question have the same prompt, the
same key and so the same completion: it is drawn once and counted for both. Keys depend on the
seed, the question, the draw and the turn, not on the system, so systems are compared on common
random numbers.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from malt_jax.evaluation.systems import System, Turn
from malt_jax.models.lora import Adapter
from malt_jax.sampling.engine import Completion, Request, Sampler
from malt_jax.tasks.base import Grade, Question
from malt_jax.tree.expand import completion_text, settings
from malt_jax.tree.keys import node_key
from malt_jax.tree.prompts import Prompt, render

Policies = Mapping[tuple[str, str], tuple[str, Adapter | None]]
"""(policy, role) -> (identity, weights): equal identities mean equal weights."""


@dataclass
class _Speaker:
    """One agent of one draw of one system on one question, and what it has said."""

    system: System
    question: Question
    draw: int
    agent: int
    texts: dict[str, str] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)


def run_systems(
    systems: Sequence[System],
    questions: Sequence[Question],
    policies: Policies,
    sampler: Sampler,
    tokenizer: Any,
    grader: Any,
    *,
    seed: int,
    context: int,
    overflow: str = "refuse",
    on_turn: Callable[[str, int], None] | None = None,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """Records of every system, question and draw, and each system's seconds.

    A call's seconds are its share, by tokens, of the batch it was drawn in; a shared call counts
    in full for every system that uses it.
    """
    speakers = [
        _Speaker(system, question, draw, agent)
        for system in systems
        for question in questions
        for draw in range(system.draws)
        for agent in range(system.agents)
    ]
    seconds: dict[str, float] = defaultdict(float)
    for step in range(max(len(system.turns) for system in systems)):
        speaking = [s for s in speakers if step < len(s.system.turns)]
        _speak(
            speaking,
            step,
            policies,
            sampler,
            tokenizer,
            grader,
            seconds,
            seed=seed,
            context=context,
            overflow=overflow,
            on_turn=on_turn,
        )
    records: dict[str, list[dict[str, Any]]] = {system.name: [] for system in systems}
    drawn: dict[tuple[str, str, int], list[_Speaker]] = defaultdict(list)
    for speaker in speakers:
        drawn[speaker.system.name, speaker.question.id, speaker.draw].append(speaker)
    for (name, question_id, draw), agents in drawn.items():
        prediction, correct = _conclude(agents)
        turns = [turn for agent in agents for turn in agent.turns]
        records[name].append(
            {
                "question_id": question_id,
                "draw": draw,
                "prediction": prediction,
                "correct": correct,
                "calls": len(turns),
                "tokens": sum(turn["tokens"] for turn in turns),
                "turns": turns,
            }
        )
    return records, dict(seconds)


def _speak(
    speakers,
    step,
    policies,
    sampler,
    tokenizer,
    grader,
    seconds,
    *,
    seed,
    context,
    overflow,
    on_turn,
) -> None:
    """Gives every speaker its turn number `step`, drawing each distinct call once."""
    said = _said(speakers)
    calls: dict[tuple, dict[tuple, tuple[Prompt, list[tuple[str, int, int]]]]] = defaultdict(dict)
    placed: list[tuple[_Speaker, Turn, tuple, tuple, int]] = []
    for speaker in speakers:
        turn = speaker.system.turns[step]
        identity, adapter = policies[turn.policy, turn.role.name]
        others = [
            t
            for a, t in said[speaker.system.name, speaker.question.id, speaker.draw]
            if a != speaker.agent
        ]
        prompt = render(
            turn.role.template,
            speaker.question.text,
            speaker.texts,
            tokenizer,
            room=context - turn.role.config.max_new_tokens,
            overflow=overflow,
            where=f"{speaker.question.id}, {turn.role.name}",
            extra={"others": "\n".join(others)},
        )
        batch = (identity, settings(turn.role, tokenizer.end_ids))
        entry = (speaker.question.id, prompt.ids)
        _, keys = calls[batch].setdefault(entry, (prompt, []))
        # A debater's key differs from its fellows'; agent 0's is that of a lone agent.
        key = (speaker.question.id, speaker.draw, speaker.agent)
        if key not in keys:
            keys.append(key)
        placed.append((speaker, turn, batch, entry, keys.index(key)))
    drawn: dict[tuple, list[tuple[Completion, str, Grade, float]]] = {}
    adapters = {identity: adapter for identity, adapter in policies.values()}
    for batch, entries in calls.items():
        identity, how = batch
        if on_turn:
            on_turn(identity, sum(len(keys) for _, keys in entries.values()))
        started = time.perf_counter()
        completions = sampler.sample(
            [
                Request(
                    prompt=prompt.ids,
                    keys=np.stack([node_key(seed, "eval", *key, step) for key in keys]),
                )
                for prompt, keys in entries.values()
            ],
            how,
            adapter=adapters[identity],
        )
        elapsed = time.perf_counter() - started
        total = max(1, sum(len(c.tokens) for group in completions for c in group))
        for (entry, (_, keys)), group in zip(entries.items(), completions, strict=True):
            texts = [completion_text(c, tokenizer.end_ids, tokenizer) for c in group]
            question = (
                next(s.question for s in speakers if s.question.id == entry[0]) if False else None
            )
            drawn[batch, entry] = [
                (c, text, None, elapsed * len(c.tokens) / total)  # type: ignore[list-item]
                for c, text in zip(group, texts, strict=True)
            ]
