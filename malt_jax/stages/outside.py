"""A forest that was sampled elsewhere takes the place of this run's search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from malt_jax.config.model import ModelConfig
from malt_jax.errors import UserError
from malt_jax.models.hf_config import read_spec
from malt_jax.models.hub import local_folder
from malt_jax.models.tokenizer import Tokenizer, load_tokenizer
from malt_jax.stages.names import search_stage
from malt_jax.stages.session import Session
from malt_jax.stages.slices import COST
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import read_records
from malt_jax.tasks.base import Question
from malt_jax.tree.node import Tree
from malt_jax.tree.outside import complete, graded

ROUND = 0
"""Trees come from outside for the first round; later ones are sampled from what it has trained."""


def take_over(session: Session, files: Sequence[str]) -> None:
    """Writes the trees of `files` as this run's search, completed, graded and valued.

    Raises UserError if a tree does not fit this run's questions, pipeline or tokenizer, if a
    training question has no tree or two, or if another search has begun here.
    """
    config, stage = session.config, search_stage(ROUND)
    with session.journal(stage, inputs=True) as journal:
        # A search of this run's own, and one that was joined, have their cost sealed beside them.
        own = session.run.path / COST in manifest.sealed_units(session.run, stage)
        known = {str(Path(file)) for file in files} <= manifest.load(session.run)["inputs"].keys()
        session.refuse_own_search(stage, journal.done and known and not own, "--import")
        if journal.done:
            return
        manifest.record_inputs(session.run, [Path(file) for file in files])
        models = {base: _tokenizer(base) for base in config.bases}
        of = {role.name: models[config.model_of(role.name)] for role in session.pipeline.roles}
        tokenizers = {name: tokenizer for name, (tokenizer, _) in of.items()}
        contexts = {name: context for name, (_, context) in of.items()}
        found: dict[str, tuple[str, Mapping[str, Any], Tree]] = {}
        questions = {question.id: question for question in session.train_questions}
        for place, record in _records(files):
            try:
                question = _question(record, questions)
                if question.id in found:
                    raise ValueError(
                        f"{question.id} has a tree already, in {found[question.id][0]}"
                    )
                tree = complete(
                    record, question, session.pipeline, tokenizers, contexts,
                    config.pipeline.overflow,
                )  # fmt: skip
            except (ValueError, UserError) as error:
                raise UserError(f"--import: {place}: {error}") from None
            found[question.id] = place, record, tree
        if missing := [id for id in questions if id not in found]:
            raise UserError(
                f"--import: no tree of {', '.join(missing[:5])}"
                f"{' and others' if missing[5:] else ''}; give one for each training question, or "
                "only these questions (task.train_path, task.num_train)."
            )
        session.progress.note(f"{stage}: {len(found)} trees, grading their answers")
        _, records, trees = zip(*(found[id] for id in questions), strict=True)
        try:
            forest = graded(trees, records, list(questions.values()), session.task.grader)
        except ValueError as error:
            raise UserError(f"--import: {error}") from None
        rows = (tree.to_record() for tree in session.valued(forest).trees)
        journal.write_lines(session.run.trees(ROUND) / "00000.jsonl", rows)
    session.progress.note(f"{stage}: imported from {', '.join(files)}")


def _tokenizer(base: ModelConfig) -> tuple[Tokenizer, int]:
    """The tokenizer of a base model, and its longest sequence."""
    folder, _ = local_folder(base.path, base.revision)
    spec = read_spec(folder)
    return load_tokenizer(folder, spec.vocab), spec.context


def _records(files: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each line of the files with its place."""

    def has_nodes(record: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(record.get("nodes"), list):
            raise ValueError("a tree without a list of 'nodes'")
        return record

    for file in files:
        for line, record in enumerate(read_records(file, has_nodes), start=1):
            yield f"{file}:{line}", record


def _question(record: Mapping[str, Any], questions: Mapping[str, Question]) -> Question:
    """The training question of a record: that of its id, or else the one with its text."""
    id, text = record.get("question_id"), record.get("question")
    if isinstance(id, str) and id in questions:
        found = questions[id]
        if text not in (None, found.text):
            raise ValueError(f"the question of {id} is another one in this run's training file")
    else:
        alike = [question for question in questions.values() if question.text == text]
        if len(alike) != 1:
            raise ValueError(
                f"{len(alike)} training questions of this run have its id or text, expected one"
            )
        [found] = alike
    if record.get("answer") not in (None, found.answer):
        raise ValueError(f"the answer of {found.id} is another one in this run's training file")
    return found
