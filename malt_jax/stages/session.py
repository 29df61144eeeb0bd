"""What the stages of a run share, made when first needed: questions, model, sampler, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.config.run import Config
from malt_jax.errors import HubError, UserError
from malt_jax.heap import give_back
from malt_jax.progress import Progress
from malt_jax.storage import manifest, mirror
from malt_jax.storage.atomic import write_json
from malt_jax.storage.hashing import fingerprint
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import first, meet

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from malt_jax.models.model import Model
    from malt_jax.sampling.sampler import Sampler
    from malt_jax.storage.metrics import Metrics
    from malt_jax.tasks.base import Question, Task
    from malt_jax.training.step import Trainable
    from malt_jax.tree.roles import Pipeline


class Session:
    """A config at work on a run directory."""

    def __init__(self, config: Config, run: RunDir | None, progress: Progress):
        """`run` may be None, and be set later, while only questions and prompts are looked at."""
        self.config, self.progress = config, progress
        self.run: RunDir = run  # type: ignore[assignment]

    @cached_property
    def task(self) -> Task:
        return load_task(self.config)

    @cached_property
    def pipeline(self) -> Pipeline:
        from malt_jax.tree.roles import make_pipeline

        return make_pipeline(self.config.pipeline, self.task.templates)

    @cached_property
    def train_questions(self) -> list[Question]:
        """This shard's questions of the training split, checked against the evaluation's."""
        from malt_jax.tasks import check_overlap

        config = self.config.task
        questions = load_split(
            self.task, config, "train", config.train_path, config.num_train, self.config.seed
        )
        check_overlap(questions, self.eval_questions)
        index, count = map(int, self.config.search.shard.split("/"))
        size = len(questions)
        return questions[size * (index - 1) // count : size * index // count]

    @cached_property
    def eval_questions(self) -> list[Question]:
        config = self.config.task
        # Every seed is measured on the same questions: seeds differ in what they learn from.
        return load_split(self.task, config, "eval", config.eval_path, config.num_eval, None)

    @cached_property
    def model(self) -> Model:
        from malt_jax.models.mesh import rules as mesh_rules
        from malt_jax.models.model import load_model

        config = self.config.model
        with self.timed("load the model"):
            model = load_model(
                config.path,
                revision=config.revision,
                dtype=None if config.dtype == "auto" else config.dtype,
                mesh=self.mesh,
                rules=mesh_rules(self.config.mesh),
            )
        known = manifest.load(self.run).get("model")
        facts = {"path": config.path, "revision": model.revision, "fingerprint": model.fingerprint}
        meet("model looked up")
        if known is None:
            manifest.amend(self.run, model=facts)
        elif known["fingerprint"] != facts["fingerprint"]:
            raise UserError(
                f"model.path: the weights in {config.path} are not those this run began with "
                "(their SHA-256 differs); restore them or choose another --output-dir."
            )
        return model

    @cached_property
    def mesh(self) -> Mesh | None:
        """The mesh of the config over all devices; None for one device."""
        import jax

        from malt_jax.models.hf_config import read_spec
        from malt_jax.models.hub import local_folder
        from malt_jax.models.mesh import (
            AXES,
            choose_layout,
            device_memory,
            make_mesh,
            slice_count,
        )
        from malt_jax.models.weights import abstract_params

        devices = jax.devices()
        if len(devices) == 1:
            return None
        folder, _ = local_folder(self.config.model.path, self.config.model.revision)
        spec = read_spec(folder)
        itemsize = 4 if devices[0].platform == "cpu" else 2
        _, params = abstract_params(spec, "float32", stacked=True)
        size = itemsize * sum(leaf.size for leaf in jax.tree.leaves(params))
        layout = choose_layout(
            self.config.mesh,
            len(devices),
            slice_count(devices),
            spec,
            size,
            device_memory(devices[0]),
        )
        self.progress.note(f"mesh {dict(zip(AXES, layout.shape, strict=True))}: {layout.why}")
        return make_mesh(layout, devices)

    @cached_property
    def sampler(self) -> Sampler:
        from malt_jax.sampling.sampler import Sampler

        # Told to stop, a block in progress is given up: what is finished is saved already.
        return Sampler(self.model, self.config.sampler, mesh=self.mesh, on_chunk=raise_if_stopped)

    def watch_sampler(self) -> Callable[[], dict[str, Any]]:
        """Shows the sampler's figures from now on; what is returned tells them, since this call."""
        stats = self.sampler.stats
        before = replace(stats)
        figures = lambda: stats.since(before).as_dict()  # noqa: E731
        self.progress.watch(figures)
        return figures

    @cached_property
    def context(self) -> int:
        return self.model.spec.context

    def fresh_weights(self, name: str) -> Trainable:
        """What a trainee begins with: an adapter that changes nothing yet, or the base itself."""
        if self.config.train.full:
            return self.model.params
        import jax

        from malt_jax.models.lora import adapter_shardings, init_adapter
        from malt_jax.tree.keys import node_key

        spec = self.model.spec
        key = jax.random.wrap_key_data(node_key(self.config.seed, "adapter", name))
        adapter = init_adapter(spec, self.config.train.lora, key)
        if self.mesh is None:
            return adapter
        return jax.device_put(adapter, adapter_shardings(spec, adapter, self.mesh))

    @cached_property
    def metrics(self) -> Metrics:
        from malt_jax.storage.metrics import Metrics

        tracker = "wandb" if self.config.wandb else "trackio" if self.config.trackio else None
        return Metrics(self.run, tracker)

    def close(self) -> None:
        """Writes what was logged and not yet written."""
        if "metrics" in self.__dict__:
            self.metrics.close()

    def done(self, stage: str) -> bool:
        """Whether a stage is finished; what it made is then checked against its seal.

        Every stage asks this first, so here a run that was told to stop begins no other one.
        """
        raise_if_stopped()
        if not manifest.stage_done(self.run, stage):
            return False
        units = manifest.sealed_units(self.run, stage)
        manifest.verify(self.run, units)
        if units:  # a phase that a role does without is sealed empty
            self.progress.note(f"{stage}: done before")
        return True

    def trees(self, round: int) -> Iterator[dict[str, Any]]:
        """The records of a round's finished search, in the order of the questions."""
        units = manifest.sealed_units(self.run, search_stage(round))
        manifest.verify(self.run, units)
        for path in units:
            if path.suffix == ".jsonl":
                yield from read_lines(path)

    def seal(self, stage: str, units: Iterable[Path], done: bool = True) -> None:
        """Seals what a stage has made (`manifest.seal`), and copies it to the mirror."""
        manifest.seal(self.run, stage, units, done=done)
        if url := self.config.mirror:
            first(lambda: mirror.push(self.run, url))
        give_back()

    def record_inputs(self) -> None:
        """Hashes question files and questions; a run is not continued over others.

        The questions too, because those of the hub or of the user's own code lie in no file.
        """
        task = self.config.task
        manifest.record_inputs(self.run, filter(None, [task.train_path, task.eval_path]))
        read = {"train": self.train_questions, "eval": self.eval_questions}
        now = {
            split: fingerprint(data=[[q.id, q.text, q.answer] for q in questions])
            for split, questions in read.items()
        }
        known = manifest.load(self.run).get("questions")
        meet("questions looked up")
        if known is None:
            manifest.amend(self.run, questions=now)
        elif changed := [split for split in now if now[split] != known[split]]:
            raise UserError(
                f"task.name: the {' and '.join(changed)} questions of {task.name!r} are not those "
                "this run began with; restore them or choose another --output-dir."
            )

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.progress.note(f"{what}: {time.perf_counter() - started:.1f} s")

    def record_cost(self, name: str, cost: dict[str, Any]) -> Path:
        """Keeps what a stage cost in this process; what a killed one spent is not in it."""
        path = self.run.path / "cost" / f"{name.replace('/', '-')}.json"
        write_json(path, cost)
        return path


def search_stage(round: int) -> str:
    return f"search/{round:03d}"


def label_stage(round: int) -> str:
    return f"label/{round:03d}"


def train_stage(round: int, role: str, phase: str) -> str:
    return f"train/{round:03d}/{role}/{phase}"


def load_task(config: Config) -> Task:
    from malt_jax.tasks import get_task

    return get_task(config.task.name, grader=config.task.grader, allow_code=config.task.allow_code)


def load_split(
    task: Task, config: Any, split: str, path: str | None, limit: int | None, seed: int | None
) -> list[Question]:
    """A split's questions; an error names the config field the question came from."""
    try:
        return task.load(split, path, limit, seed if path is None else None)
    except HubError:
        raise  # it names the hub, and the field that does without
    except UserError as error:
        if str(error).startswith("task."):
            raise  # it names its field
        field = f"task.{split}_path" if path else f"task.num_{split}"
        raise UserError(f"{field}: {error}") from None
