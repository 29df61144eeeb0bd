"""Two runs for one page: what the page shows of each, checked against its seals first."""

from __future__ import annotations

import os
from pathlib import Path

from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.config.run import from_dict, with_defaults
from malt_jax.errors import UserError
from malt_jax.progress import Progress
from malt_jax.report import embed
from malt_jax.report.compare import MARK, Side, write_comparison
from malt_jax.stages.measured import clusters_of
from malt_jax.stages.report import sealed_inputs
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.config_file import changed_fields
from malt_jax.storage.jsonl import read_json
from malt_jax.storage.rundir import RunDir, run_around


def compare(first: RunDir, second: RunDir, output: Path) -> None:
    """Writes the page that shows both runs side by side; nothing in a run is changed."""
    old, new = (with_defaults(run.config) for run in (first, second))
    write_comparison(
        output, (_side(first), _side(second)), changed_fields(old, new, CANNOT_CHANGE_RESULTS)
    )


def _side(run: RunDir) -> Side:
    manifest.verify(run, sealed_inputs(run))
    config = from_dict(run.config)
    session = Session(config, run, Progress(quiet=True))
    return Side(
        run.path,
        {q.id: (q.text, q.answer) for q in session.eval_questions},
        read_json(run.results, "remove it and run `malt eval`"),
        config.search.threshold,
        [role.name for role in config.pipeline.roles],
        clusters_of(session),
    )


def check_output(path: Path) -> None:
    """Refuses a place where the page would replace anything but an earlier comparison."""
    if around := run_around(path):
        raise UserError(f"--output: {path} is in the run directory {around}; choose another place.")
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; give the name of a file in it.")
    earlier = path.exists() and MARK.encode() in path.read_bytes()[:4096]
    if path.exists() and not earlier:
        raise UserError(
            f"--output: {path} is no page of `malt report --compare`; it is kept, choose another."
        )
    # The page replaces or removes this folder, so it must be the data of the page before it.
    data = embed.beside(path)
    if os.path.lexists(data) and not (earlier and embed.is_page_data(data)):
        raise UserError(
            f"--output: {data} is in the place of the page's data, and not what an earlier "
            f"`malt report --compare` wrote there with {path.name}; it is kept, choose another."
        )
