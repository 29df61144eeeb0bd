"""The search as one function of a model and questions, for use from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from malt_jax.config.pipeline import PipelineConfig
from malt_jax.config.sampler import SamplerConfig
from malt_jax.config.search import SearchConfig
from malt_jax.models.model import Model
from malt_jax.sampling.sampler import Sampler
from malt_jax.tasks import get_task
from malt_jax.tasks.base import Question, Task
from malt_jax.tree.expand import expand
from malt_jax.tree.records import Forest, grade_trees
from malt_jax.tree.roles import Pipeline, make_pipeline


def search(
    model: Model,
    questions: Sequence[Question],
    pipeline: Pipeline | PipelineConfig | None = None,
    *,
    task: Task | str = "gsm8k",
    seed: int = 0,
    adapters: Mapping[str, Any] | None = None,
    sampler: Any = None,
    config: SearchConfig | None = None,
) -> Forest:
    """Expands, grades and values one tree a question (method, sections 3.1 and 3.2).

    `pipeline`: a chain of roles, by default generator, verifier, refiner with three branches each
    and the templates of `task`, whose grader gives the rewards. `adapters`: trained weights by
    role. The same arguments give the same trees, in whatever order the questions come.
    """
    task = get_task(task) if isinstance(task, str) else task
    if not isinstance(pipeline, Pipeline):
        pipeline = make_pipeline(pipeline or PipelineConfig(), task.templates)
    trees = expand(
        questions,
        pipeline,
        sampler or Sampler(model, SamplerConfig()),
        model.tokenizer,
        seed=seed,
        adapters=adapters,
        context=model.spec.context,
    )
    return grade_trees(trees, pipeline, task.grader, config or SearchConfig())
