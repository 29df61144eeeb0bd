"""Evaluation records by question, so that the explorer can set two systems side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from malt_jax.evaluation.statistics import majority_vote
from malt_jax.report.embed import Pages
from malt_jax.report.trees import SHORT
from malt_jax.storage.jsonl import read_lines

TEXT_DRAWS = 3
"""Draws whose turns the page keeps in full; of the rest it keeps the answers."""

NEEDS = ("question_id", "prediction", "correct", "turns")
"""Of a record, to be shown: one of an evaluation in progress is not sealed yet."""

Questions = Mapping[str, tuple[str, str]]
"""Question id -> (text, reference answer)."""


def add_answers(
    folder: Path, order: Sequence[str], questions: Questions, pages: Pages
) -> tuple[list[str], list[dict[str, Any]]]:
    """Pages every evaluated question; returns the systems and the list's entries.

    `order` names systems to put first; others follow by name.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    systems = [name for name in order if name in files]
    systems += [name for name in files if name not in systems]
    answers: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    texts: dict[str, tuple[str, str]] = {}
    for system in systems:
        for record in read_lines(files[system], NEEDS):
            question = record["question_id"]
            drawn = answers[question].setdefault(system, [])
            drawn.append(_compact(record, keep_texts=len(drawn) < TEXT_DRAWS))
            if question not in texts:
                # Without the question itself, the first prompt shows it inside its role prefix.
                known = (record.get("question", record["turns"][0]["prompt"]), "")
                texts[question] = questions.get(question, known)
    entries = []
    for question, by_system in answers.items():
        text, answer = texts[question]
        record = {"id": question, "question": text, "answer": answer, "systems": by_system}
        page, place = pages.add("eval", record)
        entries.append(
            {
                "id": question,
                "text": text[:SHORT],
                "answer": str(answer)[:SHORT],
                "marks": [_marks(by_system.get(system, [])) for system in systems],
                "page": page,
                "at": place,
            }
        )
    return systems, entries


def _compact(record: Mapping[str, Any], keep_texts: bool) -> dict[str, Any]:
    turns = record["turns"]
    return {
        "prediction": record["prediction"],
        "correct": record["correct"],
        "draft": turns[0].get("correct") if len(turns) > 1 else None,
        "turns": [
            {
                **{"role": turn["role"], "policy": turn["policy"], "text": turn["text"]},
                **{"tokens": turn["tokens"], "finish": turn["finish"]},
                **{"parsed": turn.get("parsed"), "correct": turn.get("correct")},
                "logprob": None if turn["logprob"] is None else round(turn["logprob"], 3),
            }
            for turn in turns
        ]
        if keep_texts
        else None,
    }


def _marks(draws: Sequence[Mapping[str, Any]]) -> str:
    """A system's answers to one question as text: the vote, saved or broken drafts, each draw.

    `1s:101`: the vote is right (0 wrong, - not drawn), a draft was saved (b broken, x both,
    . neither), and the draws were right, wrong, right.
    """
    if not draws:
        return "-.:"
    vote = majority_vote([draw["prediction"] for draw in draws])
    saved = any(draw["correct"] and draw["draft"] is False for draw in draws)
    broke = any(not draw["correct"] and draw["draft"] is True for draw in draws)
    change = {(True, False): "s", (False, True): "b", (True, True): "x"}.get((saved, broke), ".")
    bits = "".join("1" if draw["correct"] else "0" for draw in draws)
    return f"{int(draws[vote.draw]['correct'])}{change}:{bits}"
