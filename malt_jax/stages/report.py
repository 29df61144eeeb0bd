"""The report stage: the whole run as one page."""

from __future__ import annotations

from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.hashing import sha256_all
from malt_jax.report import embed
from malt_jax.report.build import PLOTS, build_report
from malt_jax.stages.evaluations import FOLDER, evaluated
from malt_jax.stages.names import EVAL, REPORT
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.rundir import RunDir
from malt_jax.storage.writers import any_of, is_writer, on_writer, wait_for_all


def report(session: Session) -> None:
    """Writes `report.html`, its data and `plots/` from the files of the run.

    Before the evaluation is finished the page shows what exists and is not sealed, so that a later
    call builds it again, as it does after a further `malt eval --run`. Sealed inputs are verified
    first: no edited number reaches the page.
    """
    manifest.verify(session.run, sealed_inputs(session.run))
    evaluations = evaluated(session.run)
    shown = sha256_all([session.run.path / FOLDER / e.name / "results.json" for e in evaluations])
    added = manifest.load(session.run).get("reported", []) != shown
    # All processes have read the manifest before one of them changes it.
    wait_for_all("evaluations looked up")
    if added:
        # An evaluation was made after the page, which is written again to show it.
        on_writer(lambda: _reopen(session, shown))
    with session.journal(REPORT) as journal:
        if journal.done:
            return
        # Only the process that writes the page needs them.
        questions, missing = asked(session) if is_writer() else ({}, "")
        with session.timed(REPORT):
            page = session.run.report
            if is_writer():
                build_report(session.run.path, questions, evaluations)
        if missing:
            session.progress.note(f"report: prompts stand in place of questions: {missing}")
        if any_of(bool(missing), "questions looked up"):
            # The page is whole once it is made where the questions are.
            journal.leave_open()
            return
        if not manifest.stage_done(session.run, EVAL):
            journal.leave_open()
            session.progress.note("report: the run is not evaluated yet; it shows what there is")
            return
        # The folder of data is made only for a run with much data, so not every path exists.
        beside = (embed.beside(page), page.with_name(PLOTS))
        journal.add(page, *(path for path in beside if path.exists()))


def asked(session: Session) -> tuple[dict[str, tuple[str, str]], str]:
    """Text and answer of the evaluated questions by id, or none and why they cannot be read.

    A run may have been copied from where its question files are.
    """
    try:
        return {q.id: (q.text, q.answer) for q in session.eval_questions}, ""
    except UserError as error:
        if error.status != UserError.status:  # a hub that does not answer is asked again
            raise
        return {}, str(error)


def _reopen(session: Session, shown: list[str]) -> None:
    manifest.reopen(session.run, REPORT)
    manifest.amend(session.run, reported=shown)


def sealed_inputs(run: RunDir) -> list[Path]:
    """The sealed files of rounds and evaluation that the page shows, and the results."""
    units = [
        unit
        for stage in manifest.load(run)["stages"]
        for unit in manifest.sealed_units(run, stage)
        if unit.relative_to(run.path).parts[0] in ("rounds", "eval")
    ]
    # Results that exist must be sealed, so they are verified even where no stage lists them.
    return [*units, run.results] if run.results.exists() else units
