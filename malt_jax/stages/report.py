"""Report: the run as one page."""

from __future__ import annotations

from malt_jax.report.page import build_report
from malt_jax.stages.session import Session
from malt_jax.storage import manifest

STAGE = "report"


def report(session: Session) -> None:
    """Writes `report.html` (and its paged data) from the files of the run."""
    if session.done(STAGE):
        return
    with session.timed(STAGE):
        written = build_report(session.run.path)
    manifest.seal(session.run, STAGE, written)
