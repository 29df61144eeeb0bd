"""The config of a run: all sections, read from a YAML file and flags."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from malt_jax.checks import check, check_place, check_range, check_unique
from malt_jax.config import reading, strict_yaml
from malt_jax.config.data import DataConfig
from malt_jax.config.evaluation import Ablation, EvalConfig
from malt_jax.config.export import ExportConfig
from malt_jax.config.fields import Field, list_fields
from malt_jax.config.lora import EXPERT_TARGETS
from malt_jax.config.mesh import MeshConfig
from malt_jax.config.model import ModelConfig
from malt_jax.config.pipeline import PHASES, PipelineConfig, split_phases
from malt_jax.config.sampler import SamplerConfig
from malt_jax.config.search import SearchConfig
from malt_jax.config.task import TaskConfig
from malt_jax.config.training import TrainConfig
from malt_jax.errors import UserError

PLACES = ("output_dir", "mirror")
"""Fields that say where a run lies."""
QUICKSTART = Path(__file__).parents[1] / "assets" / "quickstart.yaml"
"""The config of the embedded model and task, `--config quickstart`."""


@dataclass(frozen=True)
class Config:
    """All fields of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    ablations: tuple[Ablation, ...] = ()
    """Variants of the run to train and evaluate after the run itself."""
    seed: int = 0
    """Seed of everything random: samples, pairs, data order, adapters."""
    rounds: int = 1
    """Rounds of search and training, each from the last adapters; the paper has one round."""
    sharing: Literal["adapters", "shared"] = "adapters"
    """One LoRA adapter per role over one base, or one set of trained weights for all roles."""
    output_dir: str = "runs/malt"
    """The run directory; an existing one with the same config is continued."""
    mirror: str | None = None
    """Folder or URL (`s3://`, `gs://`) that the run is copied to as it goes, and restored from."""
    mirror_seconds: float = 60.0
    """Seconds between two copies of unfinished work to the mirror; finished files go at once."""
    save_minutes: float = 10.0
    """Minutes after which a phase of training saves a checkpoint again, beside the steps of its
    `save_every`; 0: by steps only."""
    quiet: bool = False
    """No progress on standard error."""
    wandb: bool = False
    """Log to Weights & Biases as well, where it is installed."""
    trackio: bool = False
    """Log to trackio as well, where it is installed."""

    def __post_init__(self):
        check(
            "://" not in self.output_dir,
            f"output_dir: found {self.output_dir!r}, allowed: a folder of this machine; --mirror "
            "copies the run to an object store.",
        )
        check_place("output_dir", self.output_dir)
        check_place("mirror", self.mirror)
        check_range(self, "rounds", least=1, most=100)
        check_range(self, "mirror_seconds", above=0, most=86400)
        check_range(self, "save_minutes", least=0)
        check(0 <= self.seed < 1 << 32, f"seed: found {self.seed}, allowed: 0 to 2^32 - 1.")
        check_unique("ablations", [ablation.name for ablation in self.ablations])
        check(
            not self.search.spare or any(role.branch > 2 for role in self.pipeline.roles),
            f"search.spare: found {self.search.spare}, but no role has a branch above 2, and every "
            "prefix keeps two siblings to see whether they differ; raise a branch, or set 0.",
        )
        check(
            self.data.weights != "confidence" or self.search.backup == "mean",
            f"data.weights: confidence, but search.backup: {self.search.backup}; confidence is "
            "that of a mean of branches, so use search.backup: mean.",
        )
        check(
            self.data.weights != "confidence" or self.data.positives != "advantage",
            "data.weights: confidence, but data.positives: advantage; confidence is how sure it is "
            "that a value is above the threshold, so use positives: value or both.",
        )
        self._check_training()
        # Of the roles that learn by it; of the run, where none does.
        by_dpo = [r.name for r in self.pipeline.roles if "dpo" in split_phases(r.train)]
        learned = [self.training_of(name) for name in by_dpo] or [self.train]
        offset = max(train.dpo.offset for train in learned)
        check(
            (self.data.margins == "gap") == (offset > 0),
            "data.margins and train.dpo.offset: found "
            f"{self.data.margins} and {offset:g}, of which one does nothing without "
            "the other; set data.margins: gap and an offset above 0, or neither.",
        )
        self._check_bases()
        adapters = {role.adapter for role in self.pipeline.roles}
        check(
            adapters == {None} or not self.train.full,
            "train.full: true, but a role names an adapter to start from; train adapters.",
        )
        check(
            not (self.search.streaming and self.train.full and self.rounds > 1)
            or self.sharing == "shared",
            "search.streaming: true, but with train.full each role has whole weights of its own "
            "after the first round, which one batch cannot hold; leave it out, or train adapters.",
        )
        settings = [self.training_of(role.name) for role in self.pipeline.roles]
        on_experts = sorted({t for one in settings for t in one.lora.targets} & {*EXPERT_TARGETS})
        check(
            not (self.search.streaming and on_experts and self.rounds > 1)
            or self.sharing == "shared",
            f"search.streaming: true, but adapters on {', '.join(on_experts)} differ between roles "
            "after the first round, and one batch cannot tell them apart; leave out one of them.",
        )
        rounded = {base.quantize for base in self.bases} - {"none"}
        check(
            not (rounded and self.train.full),
            f"train.full: true, but model.quantize: {', '.join(rounded)}, and rounded weights "
            "cannot be trained; train adapters, or set model.quantize: none.",
        )
        check(
            self.model.quantize == "none" or self.sampler.weights == "auto",
            f"sampler.weights: {self.sampler.weights}, but model.quantize: {self.model.quantize} "
            "rounds the weights already; leave one of the two out.",
        )
        check(
            len(adapters) == 1 or self.sharing == "adapters",
            "sharing: shared, but the roles start from different adapters; name one for all.",
        )

    def _check_training(self) -> None:
        """Refuses training of roles' own that cannot be read, or that would have no effect."""
        for index, role in enumerate(self.pipeline.roles):
            where = f"pipeline.roles.{index}.training"
            check(
                not role.training or self.sharing == "adapters",
                f"{where}: sharing: shared trains one set of weights; set the fields of train.",
            )
            try:
                self.training_of(role.name)
            except UserError as error:
                raise UserError(f"{where}.{error}") from None
            check(
                "lora" not in role.training or not self.train.full,
                f"{where}.lora: train.full: true trains whole weights and no adapter; leave out "
                "one of the two.",
            )
            # The STaR single agent, which learns by SFT, has the fields of the first role.
            learned = {*split_phases(role.train), *(["sft"] if index == 0 else [])}
            for phase in (phase for phase in PHASES if phase in role.training):
                check(
                    phase in learned,
                    f"{where}.{phase}: train: {role.train} has no such phase; leave these fields "
                    f"out, or add {phase} to train.",
                )

    def _check_bases(self) -> None:
        """Refuses base models of roles' own that cannot be read, or that something cannot have."""
        for index, role in enumerate(self.pipeline.roles):
            where = f"pipeline.roles.{index}.model"
            check(
                index > 0 or not role.model,
                f"{where}: the first role, and with it the single agent, answers with the run's "
                "model; set the fields of model.",
            )
            try:
                self.model_of(role.name)
            except UserError as error:
                raise UserError(f"{where}.{error}") from None
        if len(self.bases) == 1:
            return
        but = "but pipeline.roles.N.model names base models of roles' own"
        check(
            self.sharing == "adapters",
            f"sharing: shared trains one set of weights, {but}; use sharing: adapters.",
        )
        check(
            not self.search.streaming,
            f"search.streaming: true draws all roles in one batch of one model, {but}; leave it "
            "out.",
        )
        check(
            self.sampler.weights == "auto",
            f"sampler.weights: {self.sampler.weights} rounds the weights of one model, {but}; use "
            "the field quantize of model and of a role's model.",
        )

    @property
    def bases(self) -> tuple[ModelConfig, ...]:
        """The different base models, the run's own first."""
        every = (self.model, *(self.model_of(role.name) for role in self.pipeline.roles))
        return tuple(dict.fromkeys(every))

    def model_of(self, role: str) -> ModelConfig:
        """The base model that a role answers with: the run's, under the role's own fields."""
        own = {role.name: role.model for role in self.pipeline.roles}.get(role, {})
        # A revision is one of its own repository.
        inherited = {**reading.to_dict(self.model), **({"revision": None} if "path" in own else {})}
        return reading.build(ModelConfig, reading.over(inherited, own)) if own else self.model

    def training_of(self, policy: str) -> TrainConfig:
        """How a policy is trained: by the run's fields, under a role's own."""
        return self.train.with_fields(self.pipeline.training_of(policy))


@functools.cache
def all_fields() -> tuple[Field, ...]:
    """Every field that a user can set, in the order of declaration."""
    return tuple(list_fields(Config))


def load(path: str | None, flags: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a YAML file (None: the defaults) with dotted flags over it.

    `quickstart` names the file in the package, unless the current folder has a file of that name.
    """
    if path == "quickstart" and not Path(path).is_file():
        path = str(QUICKSTART)
    data = strict_yaml.read_file(path) if path else {}
    return from_dict(data, flags)


def from_dict(data: dict[str, Any], flags: list[str] | tuple[str, ...] = ()) -> Config:
    """Nested mappings laid over the defaults (a list replaces the default list), then flags."""
    # The defaults come first, because a flag may change one entry of a default list:
    # `pipeline.roles.0.branch`.
    merged = reading.over(reading.to_dict(Config()), data)
    return reading.build(Config, reading.apply_flags(merged, flags, Config))


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """A config as it was saved by an earlier version, with the default of every field it lacks.

    Where the run lies cannot change a result, and a place that is refused by now must not keep it
    from being continued in another one. So these fields are taken as they are.
    """
    places = {name: saved[name] for name in PLACES if name in saved}
    rest = {name: value for name, value in saved.items() if name not in places}
    return {**reading.to_dict(from_dict(rest)), **places}
