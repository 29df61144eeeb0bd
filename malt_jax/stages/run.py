"""The whole loop: search, label, train, round after round; then evaluate, export and report."""

from __future__ import annotations

from malt_jax.evaluation.schema import Results
from malt_jax.stages.evaluate import evaluate
from malt_jax.stages.export import export
from malt_jax.stages.label import label
from malt_jax.stages.report import report
from malt_jax.stages.search import search
from malt_jax.stages.session import Session
from malt_jax.stages.train import train


def run(session: Session) -> Results:
    """Does what is not done yet and returns the results."""
    # Each stage knows from the manifest whether it is finished, so the same call continues a run.
    for round in range(session.config.rounds):
        search(session, round)
        label(session, round)
        train(session, round)
    results = evaluate(session)
    export(session)
    report(session)
    return results
