"""What the stages of a run share, loaded on first use: questions, model, sampler, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from malt_jax.config.run import Config
from malt_jax.data.role_data import STAR, policy_name
from malt_jax.errors import HubError, UserError
from malt_jax.hashing import fingerprint
from malt_jax.progress import Progress, counted
from malt_jax.stages.bases import Bases, base_bytes, check_one_device
from malt_jax.stages.names import search_stage
from malt_jax.storage import manifest
from malt_jax.storage.journal import Journal
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir
from malt_jax.storage.writers import wait_for_all

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from malt_jax.data.role_data import RoleData
    from malt_jax.models.model import Model
    from malt_jax.sampling.sampler import Sampler
    from malt_jax.stages.profile import Profiler
    from malt_jax.storage.metrics import Metrics
    from malt_jax.tasks.base import Question, Task
    from malt_jax.training.step import Trainable
    from malt_jax.tree.node import Forest
    from malt_jax.tree.roles import Chain


ONE_TRACKER = "wandb: true, but trackio: true too, and a run logs to one of them; leave one out."


class Session:
    """A run's config and directory with everything loaded for them, shared by its stages."""

    def __init__(
        self,
        config: Config,
        run: RunDir | None,
        progress: Progress,
        shared: Session | None = None,
        profile: bool = False,
    ):
        """`run` may be None as long as only questions and prompts are looked at.

        `shared`: a session whose models and samplers are used, where the configs agree on them.
        `profile`: trace a few steps of search and training into the run directory.
        """
        self.config: Config = config
        self.progress = progress
        self._profiles = profile
        self._shared = shared
        self.run: RunDir = run  # type: ignore[assignment]

    @cached_property
    def task(self) -> Task:
        return load_task(self.config)

    @cached_property
    def pipeline(self) -> Chain:
        from malt_jax.tree.roles import make_chain

        return make_chain(self.config.pipeline, self.task.templates)

    @cached_property
    def train_questions(self) -> list[Question]:
        """This shard's questions of the training split, checked against the evaluation's."""
        from malt_jax.tasks import check_overlap

        questions, validation = self._training_split
        # On the whole split, before this shard's part is taken from it. What settings are chosen by
        # may be no question of the evaluation either.
        aside = [] if self.config.eval.split == "validation" else validation
        check_overlap([*questions, *aside], self.eval_questions)
        # Integer bounds: together the shards hold every question once, whatever their number.
        index, count = map(int, self.config.search.shard.split("/"))
        size = len(questions)
        return questions[size * (index - 1) // count : size * index // count]

    @cached_property
    def eval_questions(self) -> list[Question]:
        """The questions that systems are measured on."""
        config, split = self.config.task, self.config.eval.split
        if split == "validation":
            if not config.num_validation:
                raise UserError(
                    "eval.split: validation, but no question is set aside for it; set "
                    "task.num_validation."
                )
            return self._training_split[1][: config.num_eval]
        if split not in self.task.splits:
            raise UserError(
                f"eval.split: found {split!r}, allowed: {', '.join(self.task.splits)}, validation."
            )
        path = config.eval_path or (config.train_path if split == "train" else None)
        # Every seed is measured on the same questions: seeds differ in what they learn from.
        return load_split(self.task, split, path, config.num_eval, None)

    @property
    def trained(self) -> Session:
        """The session whose checkpoints answer; an evaluation of a finished run has another."""
        return self

    @property
    def trained_on_evaluated(self) -> int:
        """Evaluation questions that are training questions; a run with any is refused."""
        return 0

    @cached_property
    def _training_split(self) -> tuple[list[Question], list[Question]]:
        """The questions to train on, and those that are set aside for validation."""
        from malt_jax.tasks import choose, set_aside, without

        config, seed = self.config.task, self.config.seed
        load = partial(load_split, self.task, "train", config.train_path)
        if not config.num_validation:
            return load(config.num_train, seed), []
        try:
            # Of the split as it is without a seed, so that every seed sets the same ones aside.
            validation = set_aside(load(None, None), config.num_validation)
            kept = without(load(None, seed), validation)
            # A user's file is read in its order; a task's own split is sampled by seed.
            seed_of = seed if config.train_path is None else None
            return choose(kept, config.num_train, seed_of), validation
        except HubError:
            raise
        except UserError as error:
            if str(error).startswith("task."):
                raise
            raise UserError(f"task.num_validation: {error}") from None

    @cached_property
    def bases(self) -> Bases:
        """Each role's model and sampler."""
        return Bases(self, self._shared.bases if self._shared else None)

    @property
    def model(self) -> Model:
        """The run's own base model, that of the first role."""
        return self.bases.model(self.config.model)

    @cached_property
    def mesh(self) -> Mesh | None:
        """The mesh of the config over all devices; None for one device."""
        import jax

        from malt_jax.models.hf_config import read_spec
        from malt_jax.models.hub import local_folder
        from malt_jax.models.mesh import choose_layout, device_memory, make_mesh, slice_count

        devices = jax.devices()
        if len(devices) == 1:
            return None
        check_one_device(self.config, len(devices))
        folder, _ = local_folder(self.config.model.path, self.config.model.revision)
        spec = read_spec(folder)
        # Shapes alone; no weight is read to choose the layout.
        size = base_bytes(self.config.model)
        layout = choose_layout(
            self.config.mesh,
            len(devices),
            slice_count(devices),
            spec,
            size,
            device_memory(devices[0]),
        )
        self.progress.note(f"mesh {layout.sizes}: {layout.why}")
        return make_mesh(layout, devices)

    @property
    def sampler(self) -> Sampler:
        return self.bases.sampler(self.config.model)

    @cached_property
    def profiler(self) -> Profiler:
        from malt_jax.stages.profile import Profiler

        return Profiler(self.run.profile if self._profiles else None, self.progress.note)

    def meter(self) -> Callable[[], dict[str, Any]]:
        """Starts a measurement and returns a function that gives the figures since that moment.

        The progress shows the same figures of the samplers.
        """
        from malt_jax.planning.utilisation import sampling_utilisation

        stats = self.bases.stats
        # A copy, because samplers go on adding to the original.
        before = replace(stats)
        # Figures of several models are no model's utilisation.
        spec = self.model.spec if len(self.config.bases) == 1 else None

        def figures() -> dict[str, Any]:
            return stats.since(before).as_dict()

        def shown() -> dict[str, Any]:
            now = figures()
            return {**now, "utilisation": sampling_utilisation(spec, now) if spec else None}

        self.progress.watch(shown)
        return figures

    def journal(self, stage: str, *, inputs: bool = False, finishes: bool = True) -> Journal:
        """The journal of a stage. `inputs`: the stage reads questions, which must be the run's."""
        journal = Journal(
            self.run,
            stage,
            self.progress,
            meter=self.meter,
            finishes=finishes,
        )
        if inputs and not journal.done:
            self.record_inputs()
        return journal

    def refuse_own_search(self, stage: str, taken: bool, flag: str) -> None:
        """Refuses `flag`, by which a search is taken from elsewhere, where one has begun here.

        `taken`: the sealed search is the one that the flag names.
        """
        if not taken and (units := manifest.sealed_units(self.run, stage)):
            raise UserError(
                f"{flag}: the search of {self.run.path} has {counted(len(units), 'sealed file')}, "
                f"not from what is given here; leave {flag} out to go on with it, or choose "
                "another --output-dir."
            )

    def forest(self, round: int) -> Forest:
        """The sealed trees of a round's finished search, in the order of the questions."""
        from malt_jax.tree.node import Forest, Tree

        units = manifest.sealed_units(self.run, search_stage(round))
        manifest.verify(self.run, units)
        # The cost of the search is sealed with its shards.
        shards = [path for path in units if path.suffix == ".jsonl"]
        trees = [Tree.from_record(record) for path in shards for record in read_lines(path)]
        return Forest(trees)

    def valued(self, forest: Forest) -> Forest:
        """The forest with values and labels as the config computes them from its rewards."""
        from malt_jax.tree.values import value_forest

        search = self.config.search
        return value_forest(forest, search.backup, search.softness, search.threshold)

    def role_data(self, round: int, role: str, phase: str) -> RoleData:
        """A role's sealed examples for one phase of training."""
        from malt_jax.data.examples import EXAMPLES
        from malt_jax.data.role_data import RoleData

        kind, data = EXAMPLES[phase], RoleData()
        path = self.run.data(round, role) / kind.FILE
        manifest.verify(self.run, [path])
        data.of(phase).extend(kind.from_record(row) for row in read_lines(path))
        return data

    def initial_weights(self, name: str) -> Trainable:
        """The weights a policy starts from: the base's, or an adapter.

        The adapter is the one that the config names, or a new one, which changes nothing yet.
        """
        from malt_jax.models.adapters import fitted, load_adapter
        from malt_jax.models.lora import Adapter
        from malt_jax.training.weights import initial_weights, place_adapter

        train, path = self.config.training_of(name), self.start_adapter(name)
        model = self.bases.model_of(name)
        weights = initial_weights(
            model, train.lora, full=train.full, seed=self.config.seed, name=name,
            mesh=self.mesh,
        )  # fmt: skip
        if path is None:
            return weights
        adapter, own = load_adapter(path, model.spec)
        assert isinstance(weights, Adapter)  # the config refuses full fine-tuning of an adapter
        weights = fitted(adapter, own, weights, train.lora, path)
        return place_adapter(weights, model.spec, self.mesh)

    def start_adapter(self, name: str) -> str | None:
        """The adapter that the config names for a policy, or None; for STaR the first role's."""
        if name == STAR:
            return self.pipeline.roles[0].config.adapter
        for role in self.pipeline.roles:
            if policy_name(role.name, self.config.sharing) == name:
                return role.config.adapter
        return None

    @cached_property
    def metrics(self) -> Metrics:
        from malt_jax.storage.metrics import Metrics

        if self.config.wandb and self.config.trackio:
            raise UserError(ONE_TRACKER)
        tracker = "wandb" if self.config.wandb else "trackio" if self.config.trackio else None
        return Metrics(self.run, tracker)

    def close(self) -> None:
        """Writes the metrics that are still in memory."""
        # Asked of `__dict__`, because reading the property would open the metrics to close them.
        if "metrics" in self.__dict__:
            self.metrics.close()

    def record_inputs(self) -> None:
        """Records the hashes of the question files and the questions; changed ones are refused.

        The questions are hashed too, because those of the hub or of a user's module are in no file.
        """
        task = self.config.task
        manifest.record_inputs(self.run, filter(None, [task.train_path, task.eval_path]))
        read = {"train": self.train_questions, "eval": self.eval_questions}
        now = {
            split: fingerprint(data=[[q.id, q.text, q.answer] for q in questions])
            for split, questions in read.items()
        }
        known = manifest.load(self.run).get("questions")
        # As for the model: all have read before one of them writes.
        wait_for_all("questions looked up")
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


def load_task(config: Config) -> Task:
    from malt_jax.tasks import get_task

    return get_task(config.task.name, grader=config.task.grader, allow_code=config.task.allow_code)


def load_split(
    task: Task, split: str, path: str | None, limit: int | None, seed: int | None
) -> list[Question]:
    """A split's questions; an error names the config field the question came from."""
    try:
        # A user's file is read in its order; a task's own training split is sampled by seed.
        return task.load(split, path, limit, seed if path is None else None)
    except HubError:
        raise  # the message already names the hub and the field that avoids it
    except UserError as error:
        if str(error).startswith("task."):
            raise  # it names its field
        field = f"task.{split}_path" if path else f"task.num_{split}"
        raise UserError(f"{field}: {error}") from None
