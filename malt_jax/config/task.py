"""The task: where questions come from and how answers are graded."""

from __future__ import annotations

from dataclasses import dataclass

from malt_jax.checks import check_path, check_range


@dataclass(frozen=True)
class TaskConfig:
    """The questions, the prompts and the grader."""

    name: str = "arithmetic"
    """A task of `malt tasks`, `custom` for a file of your own, or `module:attribute`."""
    train_path: str | None = None
    """JSONL, CSV or Parquet file: columns question, answer or the benchmark's own; else the hub."""
    eval_path: str | None = None
    """As `train_path`, for the evaluation questions."""
    num_train: int | None = None
    """Train on so many questions; default: all. Of a file the first ones, of a task's own split a
    random sample by `seed`, so that seeds differ in what they learn from."""
    num_eval: int | None = None
    """Evaluate on the first so many questions, the same under every seed; default: all. With
    `eval.split: validation`, on at most so many of those that are set aside."""
    num_validation: int = 0
    """Set aside so many questions of the training split, the same ones under every seed, to choose
    settings by (`eval.split: validation`). None of them is trained on."""
    grader: str | None = None
    """The grader of a `custom` task: number, choice, exact, set or latex."""
    allow_code: bool = False
    """Let graders of code tasks execute what the model wrote (see `malt tasks`)."""

    def __post_init__(self):
        check_path("train_path", self.train_path)
        check_path("eval_path", self.eval_path)
        check_range(self, "num_train", "num_eval", least=1)
        check_range(self, "num_validation", least=0, zero="none")
