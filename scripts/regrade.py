"""The table of a finished run with its answers graded again, by the graders as they are now.

    python scripts/regrade.py runs/mine runs/mine-regraded

Writes results.json and the tables into the second folder; the run is not changed. Where draws were
left out because a vote was certain (`eval.stop_when_certain`), they stay out: the last line says
how many votes would have needed more of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from malt_jax.config.run import from_dict
from malt_jax.errors import UserError
from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.statistics import draws_to_certainty, majority_vote
from malt_jax.evaluation.systems import make_systems
from malt_jax.progress import Progress
from malt_jax.stages.measured import measured, summarise_run, write_results
from malt_jax.stages.session import Session
from malt_jax.storage.rundir import RunDir, run_around


def regraded(session: Session, draws: Sequence[DrawRecord], agents: int) -> list[DrawRecord]:
    """The draws of a system with every stated answer graded again."""
    questions = {question.id: question for question in session.eval_questions}
    stated = [
        (turn, questions[draw.question_id])
        for draw in draws
        for turn in draw.turns
        if turn.correct is not None and not turn.unclosed
    ]
    grades = session.task.grader.grade([turn.text for turn, _ in stated], [q for _, q in stated])
    found = {id(turn): grade for (turn, _), grade in zip(stated, grades, strict=True)}
    new = []
    for draw in draws:
        if not draw.turns:
            new.append(draw)
            continue
        turns = [
            replace(turn, parsed=found[id(turn)].parsed, correct=bool(found[id(turn)].correct))
            if id(turn) in found
            else turn
            for turn in draw.turns
        ]
        each = len(turns) // agents
        own = [turns[start : start + each] for start in range(0, len(turns), each)]
        finals = [next(t for t in reversed(some) if t.correct is not None) for some in own]
        winner = finals[majority_vote([final.parsed for final in finals]).draw]
        new.append(
            replace(
                draw, turns=tuple(turns), prediction=winner.parsed, correct=bool(winner.correct)
            )
        )
    return new


def main() -> None:
    run, output = map(Path, sys.argv[1:3])
    if run_around(output / "results.json"):
        raise UserError(f"{output} is in a run directory; choose a folder of its own.")
    directory = RunDir.existing(run)
    session = Session(from_dict(directory.config), directory, Progress(quiet=True))
    found = measured(session)
    systems = make_systems(session.config.eval, session.pipeline, session.task.templates)
    agents = {system.name: system.agents for system in systems}
    changed: Counter[str] = Counter()
    uncertain = 0
    for name, draws in found.draws.items():
        new = regraded(session, draws, agents.get(name, 1))
        changed[name] = sum(a.prediction != b.prediction for a, b in zip(draws, new, strict=True))
        by_question: dict[str, list[DrawRecord]] = {}
        for draw in new:
            by_question.setdefault(draw.question_id, []).append(draw)
        for some in by_question.values():
            drawn = [draw.prediction for draw in some if draw.turns]
            uncertain += len(drawn) < len(some) and draws_to_certainty(drawn, len(some)) > 0
        found.draws[name] = new
    for path in write_results(output, summarise_run(session, found)):
        print(path)
    print(f"predictions changed: {dict(changed)}; votes that lack draws: {uncertain}")


if __name__ == "__main__":
    main()
