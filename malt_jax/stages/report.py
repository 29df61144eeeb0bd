"""The report stage: the whole run as one page."""

from __future__ import annotations

from pathlib import Path

from malt_jax.report.build import PLOTS, build_report
from malt_jax.stages.names import EVAL, REPORT
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.writers import is_writer


def report(session: Session) -> None:
    """Writes `report.html`, its data and `plots/` from the files of the run.

    Before the evaluation is finished the page shows what exists and is not sealed, so that a later
    call builds it again. Sealed inputs are verified first: no edited number reaches the page.
    """
    manifest.verify(session.run, _sealed_inputs(session))
    with session.journal(REPORT) as journal:
        if journal.done:
            return
        questions = {q.id: (q.text, q.answer) for q in session.eval_questions}
        with session.timed(REPORT):
            page = build_report(session.run.path, questions) if is_writer() else session.run.report
        if not manifest.stage_done(session.run, EVAL):
            journal.leave_open()
            session.progress.note("report: the run is not evaluated yet; it shows what there is")
            return
        # `report_data` is made only for a run with much data, so not every path exists.
        beside = [page.with_name(name) for name in ("report_data", PLOTS)]
        journal.add(page, *(path for path in beside if path.exists()))


def _sealed_inputs(session: Session) -> list[Path]:
    """The sealed files of rounds and evaluation that the page shows, and the results."""
    run = session.run
    units = [
        unit
        for stage in manifest.load(run)["stages"]
        for unit in manifest.sealed_units(run, stage)
        if unit.relative_to(run.path).parts[0] in ("rounds", "eval")
    ]
    # Results that exist must be sealed, so they are verified even where no stage lists them.
    return [*units, run.results] if run.results.exists() else units
