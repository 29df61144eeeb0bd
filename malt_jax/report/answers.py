"""Draws of the evaluation by question, so that the explorer can show two systems side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from malt_jax.evaluation.records import DrawRecord, TurnRecord
from malt_jax.evaluation.schema import Results
from malt_jax.evaluation.statistics import majority_vote
from malt_jax.evaluation.systems import at_temperature
from malt_jax.report.embed import Pages
from malt_jax.report.trees import SHORT
from malt_jax.storage.jsonl import read_records

TEXT_DRAWS = 3
"""Draws whose turns the page keeps in full; of the others it keeps the answers."""

Questions = Mapping[str, tuple[str, str]]
"""Question id -> (text, reference answer)."""


class Source(NamedTuple):
    """The evaluation of one run."""

    folder: Path
    """Its draws, one file per system."""
    order: Sequence[str]
    """Systems that come first, in this order; the others follow by name."""
    questions: Questions
    prefix: str = ""
    """Begins the names of its systems, where several runs are on one page."""
    ids: Mapping[str, str] | None = None
    """The page's id of each question; others are left out. Without it each keeps its own."""


def names_in(results: Results | None, *systems: str) -> list[str]:
    """The systems by their names in these results: those of its first temperature, in a sweep."""
    rows = results["systems"] if results else ()
    temperature = next((row.get("temperature") for row in rows), None)
    return [at_temperature(system, temperature) for system in systems]


def add_answers(sources: Sequence[Source], pages: Pages) -> tuple[list[str], list[dict[str, Any]]]:
    """Adds every evaluated question to the page's data.

    Returns the systems, source by source, and one entry of the explorer's list per question.
    """
    systems: list[str] = []
    answers: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    texts: dict[str, tuple[str, str]] = {}
    for source in sources:
        files = {path.stem: path for path in sorted(source.folder.glob("*.jsonl"))}
        # A name keeps its first place: the systems of `order` first, then the others by name.
        names = dict.fromkeys([*(name for name in source.order if name in files), *files])
        for name in names:
            system = source.prefix + name
            systems.append(system)
            for record in read_records(files[name], DrawRecord.from_record):
                id = record.question_id
                wanted = source.ids is None or id in source.ids
                if not (wanted and record.turns):  # a draw that was left out has no turns
                    continue
                question = id if source.ids is None else source.ids[id]
                drawn = answers[question].setdefault(system, [])
                drawn.append(_compact(record, keep_texts=len(drawn) < TEXT_DRAWS))
                # Without the text of the question, the first prompt shows it in its template.
                asked = source.questions.get(id, (record.turns[0].prompt, ""))
                texts.setdefault(question, asked)
    entries = []
    for question, by_system in answers.items():
        text, answer = texts[question]
        page, place = pages.add(
            "eval", {"id": question, "question": text, "answer": answer, "systems": by_system}
        )
        entries.append(
            {
                "id": question,
                "text": text[:SHORT],
                "answer": answer[:SHORT],
                "marks": [_marks(by_system.get(system, [])) for system in systems],
                "page": page,
                "at": place,
            }
        )
    return systems, entries


def _compact(record: DrawRecord, keep_texts: bool) -> dict[str, Any]:
    """One draw for the page, without the prompts of its turns."""
    return {
        "prediction": record.prediction,
        "correct": record.correct,
        # A single call has no draft that a later turn could change.
        "draft": next((t.correct for t in record.turns[:-1] if t.correct is not None), None),
        "turns": list(map(_compact_turn, record.turns)) if keep_texts else None,
    }


def _compact_turn(turn: TurnRecord) -> dict[str, Any]:
    kept = {name: value for name, value in vars(turn).items() if name != "prompt"}
    if turn.thought is None:
        del kept["thought"], kept["unclosed"]
    return kept | {"logprob": round(turn.logprob, 3)}


def _marks(draws: Sequence[Mapping[str, Any]]) -> str:
    """A system's answers to one question as text: the vote, changed drafts, and each draw.

    In `1s:101` the vote is right (0 wrong, - not drawn), a draft was saved (b broken, x both,
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
