"""Report: the run as one page."""

from __future__ import annotations

from pathlib import Path

from malt_jax.report.build import PLOTS, build_report
from malt_jax.stages.names import EVAL, REPORT
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.writers import writes


def report(session: Session) -> None:
    """Writes `report.html` (with its paged data) and `plots/` from the files of the run.

    Before the evaluation is finished the page shows what there is and is not sealed, so that a
    later call makes it anew. What is sealed must be whole: no table is shown that was edited.
    """
    manifest.verify(session.run, _read(session))
    with session.journal(REPORT) as journal:
        if journal.done:
            return
        questions = {q.id: (q.text, q.answer) for q in session.eval_questions}
        with session.timed(REPORT):
            page = build_report(session.run.path, questions) if writes() else session.run.report
        if not manifest.stage_done(session.run, EVAL):
            journal.leave_open()
            session.progress.note("report: the run is not evaluated yet; it shows what there is")
            return
        beside = [page.with_name(name) for name in ("report_data", PLOTS)]
        journal.add(page, *(path for path in beside if path.exists()))


def _read(session: Session) -> list[Path]:
    """What the page is made from, as far as it is sealed, and the results, which must be."""
    run = session.run
    units = [
        unit
        for stage in manifest.load(run)["stages"]
        for unit in manifest.sealed_units(run, stage)
        if unit.relative_to(run.path).parts[0] in ("rounds", "eval")
    ]
    return [*units, run.results] if run.results.exists() else units
