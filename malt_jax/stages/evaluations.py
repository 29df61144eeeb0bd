"""Evaluations of a finished run on other tasks, splits and temperatures: `RUN/evals/NAME`.

An evaluation is a run directory of its own inside the run, with config, manifest, records and
results. Its policies are read from the run, of which nothing is changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.checks import check_name
from malt_jax.config import reading
from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.config.run import Config, from_dict, with_defaults
from malt_jax.config.task import TaskConfig
from malt_jax.errors import UserError
from malt_jax.evaluation.transfer import OWN, Column, transfer_table, transfer_values
from malt_jax.regular_files import read_bytes
from malt_jax.stages.bases import facts_of_bases
from malt_jax.stages.names import EVAL, search_stage, trained_stage
from malt_jax.stages.other_models import check_other
from malt_jax.stages.session import Session
from malt_jax.stages.trust import open_existing
from malt_jax.stages.variants import planned
from malt_jax.storage import manifest
from malt_jax.storage.atomic import json_text, write_text
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir, differences
from malt_jax.tasks.base import Question
from malt_jax.tasks.loading import overlap
from malt_jax.tree.policies import STAR

if TYPE_CHECKING:
    from malt_jax.evaluation.schema import Results

FOLDER, TABLE = "evals", "table"
MAY_DIFFER = CANNOT_CHANGE_RESULTS | {"task", "eval", "sampler", "seed", "ablations"}
"""Sections that an evaluation may change; `OF_A_ROLE` are the fields of a role."""
OF_A_ROLE = ("template", "temperature", "top_p", "top_k", "max_new_tokens", "stop")


def trained_run(run: str | os.PathLike, trusted: bool) -> tuple[Config, RunDir]:
    """The config and directory of a run whose training is finished.

    A run that somebody else made may name a Python module as its task, which is imported only if
    it is `trusted`.
    """
    config, directory = open_existing(run, trusted)
    needed = trained_stage(config.rounds - 1)
    if not manifest.stage_done(directory, needed):
        raise UserError(
            f"{directory.path}: not trained yet ({needed} is not finished); finish it with "
            f"`malt run --output-dir {directory.path}`."
        )
    return config, directory


class Evaluation(Session):
    """A session that measures the policies of another one, its `trained` session."""

    def __init__(self, config: Config, trained: Session, *, allow_overlap: bool = False):
        super().__init__(config, None, trained.progress, shared=trained)
        self._trained, self._allow_overlap = trained, allow_overlap

    @property
    def trained(self) -> Session:
        return self._trained

    @cached_property
    def train_questions(self) -> list[Question]:
        """The questions that the run was trained on, from its trees.

        Raises UserError if some of them are to be evaluated, unless that was allowed.
        """
        run = self.trained.run
        units = manifest.sealed_units(run, search_stage(0))
        shards = [path for path in units if path.suffix == ".jsonl"]
        questions = [
            Question(record["question_id"], record["question"], record["answer"])
            for shard in shards
            for record in read_lines(shard)
        ]
        both = overlap(questions, self.eval_questions)
        if both and not self._allow_overlap:
            named = ", ".join(f"{a} = {b}" for a, b in both[:5]) + (", ..." if both[5:] else "")
            raise UserError(
                f"{len(both)} of {len(self.eval_questions)} questions of {self.config.task.name} "
                f"({self.config.eval.split}) are training questions of {run.path} ({named}); give "
                "other questions, or --allow-overlap to measure all the same and say so."
            )
        return questions

    @cached_property
    def trained_on_evaluated(self) -> int:
        """Evaluation questions that are training questions."""
        return len(overlap(self.train_questions, self.eval_questions))


def evaluation_config(config: Config, run: Path, name: str, flags: list[str]) -> Config:
    """The config of an evaluation: the run's, with flags over it, on the run's own task or another.

    With another task the run's question files are forgotten. Raises UserError for a name that can
    be no folder and for flags that would change what was trained.
    """
    try:
        check_name(name, also="-.+@", most=100)
    except UserError as error:
        raise UserError(f"--{error}") from None
    if name.casefold().startswith(f"{TABLE}."):
        raise UserError(f"--name: {name!r} is a file of {run / FOLDER}; choose another.")
    if name == OWN:
        raise UserError(
            f"--name: {name!r} is what tables call the run's own results; choose another."
        )
    data = reading.to_dict(config)
    said = reading.apply_flags({}, flags)
    other = said.get("task", {}).get("name", config.task.name)
    if other != config.task.name:
        data["task"] = reading.to_dict(TaskConfig(name=str(other)))
    elif (split := said.get("eval", {}).get("split", config.eval.split)) == "train":
        # Else the file of the evaluation's questions would be measured as the training split.
        data["task"]["eval_path"] = None
    elif split == "eval" and not Path(config.task.train_path or os.devnull).exists():
        # What was trained on is in the run's trees, so that the file may have moved since.
        data["task"]["train_path"] = None
    # Into a mirror only where the flags say so: that of the run may be somebody else's.
    data |= {"output_dir": str(run / FOLDER / name), "ablations": [], "mirror": None}
    # Trees of other questions would be measured before and after training; only on demand.
    data["eval"]["trees"] = 0
    made = from_dict(data, flags)
    if Path(made.output_dir) != run / FOLDER / name:
        raise UserError("--output-dir: an evaluation is written into the run; choose its --name.")
    _refuse_trained(config, made)
    return made


def _refuse_trained(config: Config, made: Config) -> None:
    """Refuses what belongs to the training: it is fixed in the weights that are measured."""
    ours, theirs = reading.to_dict(config), reading.to_dict(made)
    for mine, other in zip(ours["pipeline"]["roles"], theirs["pipeline"]["roles"], strict=False):
        mine |= {field: other[field] for field in OF_A_ROLE}
    ours["pipeline"]["overflow"] = theirs["pipeline"]["overflow"]
    if found := differences(ours, theirs, MAY_DIFFER):
        raise UserError(
            f"eval: {'; '.join(found)}; the run was made with the first, so only task, eval, "
            f"sampler, seed, pipeline.overflow and a role's {', '.join(OF_A_ROLE)} may differ."
        )


def check_evaluation(session: Evaluation) -> None:
    """Refuses, before anything is written, what an evaluation could not be made of."""
    RunDir.check(
        session.config.output_dir,
        reading.to_dict(session.config),
        free=CANNOT_CHANGE_RESULTS,
        complete=with_defaults,
        inside=session.trained.run,
    )
    systems, _ = planned(session)
    if not session.eval_questions:
        raise UserError("task.eval_path: found no question; at least one is needed.")
    measured, _ = planned(session.trained)
    trains_star = any(turn.policy == STAR for system in measured for turn in system.turns)
    for system in systems:
        if not trains_star and any(turn.policy == STAR for turn in system.turns):
            raise UserError(
                f"eval.systems: {system.name!r} answers with the STaR single agent, which this run "
                "has not trained (its own eval.systems needs none); leave the system out."
            )
    for model in session.config.eval.models:
        check_other(model)
    _ = session.train_questions  # refuses training questions among the evaluation's


@contextmanager
def opened(session: Evaluation) -> Iterator[None]:
    """Opens the evaluation's folder in the run for writing, as its only writer."""
    config, trained = session.config, session.trained
    weights = trained_with(trained)
    facts = {**facts_of_bases(trained.run), "evaluates": weights}
    with RunDir.open(
        config.output_dir,
        reading.to_dict(config),
        "malt eval",
        free=CANNOT_CHANGE_RESULTS,
        complete=with_defaults,
        facts=facts,
        mirror=config.mirror and f"{config.mirror}/{Path(config.output_dir).name}",
        mirror_seconds=config.mirror_seconds,
        inside=trained.run,
    ) as run:
        if manifest.load(run).get("evaluates") != weights:
            raise UserError(
                f"{run.path}: began with other weights than the run has now; choose another --name."
            )
        session.run = run
        try:
            yield
        finally:
            session.close()


def trained_with(trained: Session) -> dict[str, Any]:
    """The hashes of the checkpoints that answer, and of the config they were trained with."""
    found = manifest.load(trained.run)
    files = found["artefacts"].items()
    return {
        "config": found["config_sha256"],
        "checkpoints": {
            file: entry["sha256"] for file, entry in files if file.startswith("checkpoints/")
        },
    }


def finished(run: RunDir) -> list[Column]:
    """The results of a run and of its finished evaluations, for one table."""
    own = [Column.of(OWN, _results(run))] if manifest.stage_done(run, EVAL) else []
    return own + evaluated(run)


def evaluated(run: RunDir) -> list[Column]:
    """The results of a run's finished evaluations by name, checked against their seals."""
    found = []
    folders = sorted((run.path / FOLDER).glob(f"*/{manifest.NAME}"), key=os.fspath)
    for folder in (path.parent for path in folders):
        one = RunDir.existing(folder)
        if manifest.stage_done(one, EVAL):
            found.append(Column.of(folder.name, _results(one)))
    return found


def _results(run: RunDir) -> Results:
    manifest.verify(run, [run.results])
    return json.loads(read_bytes(run.results))


def write_table(run: RunDir) -> Any:
    """Writes `evals/table.json`, `.md` and `.csv` over all evaluations, and returns the table."""
    columns = finished(run)
    if not columns:
        raise UserError(f"{run.path}: nothing is evaluated yet; give an evaluation a --name.")
    table, place = transfer_table(columns), run.path / FOLDER / TABLE
    place.parent.mkdir(exist_ok=True)
    trained_on = with_defaults(run.config)["task"]["name"]
    write_text(place.with_suffix(".json"), json_text(transfer_values(columns, trained_on)))
    write_text(place.with_suffix(".md"), f"# Evaluations, trained on {trained_on}\n\n"
               f"{table.markdown()}\n")  # fmt: skip
    write_text(place.with_suffix(".csv"), table.csv())
    return table
