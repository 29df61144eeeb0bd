"""What the benchmarks compute on (`inputs.toml`), so that they need no data set."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from malt_jax.data.examples import DpoExample, PolicyExample, SftExample, UnpairedExample
from malt_jax.tasks.base import Question


def word_problems(count: int) -> list[Question]:
    """Generated questions without reference answers, which the benchmark does not need."""
    texts, questions = _inputs()["questions"], []
    for i in range(count):
        # `%` binds like `*`: `7 * i % 29` is `(7 * i) % 29`. The three periods have no common
        # factor, so that questions repeat late, and every run has the same ones.
        numbers = {"a": 12 + 7 * i % 29, "b": 15 + 11 * i % 23, "c": 4 + 5 * i % 9}
        questions.append(Question(f"B{i}", texts[i % len(texts)].format(**numbers), ""))
    return questions


def sft_examples(count: int, vocab: int, seed: int) -> list[SftExample]:
    """Random tokens in GSM8K's lengths."""
    rng = np.random.default_rng(seed)
    return [
        SftExample(_ids(rng, vocab, prompt), _ids(rng, vocab, answer), f"Q{i}", question_id=f"Q{i}")
        for i, (prompt, answer) in enumerate(_lengths(count))
    ]


def dpo_examples(count: int, vocab: int, seed: int) -> list[DpoExample]:
    """Random tokens in GSM8K's lengths; the rejected completion is 0.7 to 1.3 times the chosen."""
    rng = np.random.default_rng(seed)
    examples = []
    for i, (prompt, answer) in enumerate(_lengths(count)):
        other = max(1, round(answer * rng.uniform(0.7, 1.3)))
        ids, chosen, rejected = (_ids(rng, vocab, length) for length in (prompt, answer, other))
        name = f"Q{i}"
        example = DpoExample(ids, chosen, rejected, chosen_node_id=name, question_id=name)
        examples.append(example)
    return examples


def kto_examples(count: int, vocab: int, seed: int) -> list[UnpairedExample]:
    """The completions of `sft_examples`, every other one undesirable."""
    return [
        UnpairedExample(e.prompt_ids, e.completion_ids, e.id, i % 2 == 0, question_id=e.id)
        for i, e in enumerate(sft_examples(count, vocab, seed))
    ]


def policy_examples(count: int, vocab: int, seed: int) -> list[PolicyExample]:
    """The completions of `sft_examples` with made-up log-probabilities and advantages."""
    return [
        PolicyExample(
            e.prompt_ids, e.completion_ids, e.id, (-1.0,) * len(e.completion_ids), (-1.0) ** i,
            question_id=e.id,
        )
        for i, e in enumerate(sft_examples(count, vocab, seed))
    ]  # fmt: skip


def _lengths(count: int) -> list[tuple[int, int]]:
    lengths = _inputs()["lengths"]
    return [lengths[i % len(lengths)] for i in range(count)]


def _ids(rng: np.random.Generator, vocab: int, length: int) -> tuple[int, ...]:
    # The first ids are left out, since vocabularies often begin with special tokens.
    return tuple(rng.integers(3, vocab, length).tolist())


def _inputs() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("inputs.toml").read_text(encoding="utf-8"))
