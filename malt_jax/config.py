"""Every field a user can set, declared once: its type, its default, its help, its range.

A config is a YAML file laid over these defaults, with dotted flags laid over both
(`--task.num-train 200`). Reading, checking and printing are `settings`; this file is the list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from malt_jax import settings
from malt_jax.models.mesh_config import MeshConfig
from malt_jax.sampling.config import SamplerConfig
from malt_jax.settings import check
from malt_jax.training.config import TrainConfig

QUICKSTART = Path(__file__).parent / "assets" / "quickstart.yaml"
"""The config of the package's own model and task, `--config quickstart`."""

MAX_VOTES = 1024
"""Draws of one system: a vote of more would change nothing but the bill."""
MAX_CALLS = 1_000_000
"""Completions of one question's tree, all of which are in memory together."""
MAX_TURNS = 64
"""Of a pipeline or a system."""
MAX_NAME = 64
"""Letters of a name that the user gives."""
MAX_SYSTEM_NAME = 100
"""As many as the names that are made of several roles' may have, and a file of a run."""
_MEANS_ELSE = {
    "question": "a placeholder of templates",
    "previous": "a placeholder of templates",
    "others": "a placeholder of templates",
    "star": "the single-agent baseline, which is trained beside the roles",
}
"""Names no role can have, and what they stand for."""


def check_name(name: str, also: str = "", most: int = MAX_NAME) -> None:
    """A `name` that files and folders can have on every disk, with further characters `also`."""
    allowed = f"_{also}"
    good = re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9{re.escape(allowed)}]{{0,{most - 1}}}", name)
    check(
        bool(good),
        f"name: found {settings.show(name)}, allowed: at most {most} of the letters A to Z, digits "
        f"and {' '.join(allowed)}, the first one a letter or digit.",
    )


def check_unique(field: str, names: Sequence[str]) -> None:
    """Names that differ in case only are one file on some disks."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        count = names.count(name)
        check(count == 1, f"{field}: the name {name!r} stands twice; change one.")
        check(other == name, f"{field}: {other!r} and {name!r} differ in case only; change one.")


@dataclass(frozen=True)
class ModelConfig:
    """The base model all roles start from."""

    path: str = "quickstart"
    """A local Hugging Face directory, a hub name, or `quickstart` for the embedded tiny model."""
    revision: str | None = None
    """Hub revision: a branch, tag or commit."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations; auto: float32 on CPU, bfloat16 on accelerators."""

    def __post_init__(self):
        check(bool(self.path.strip()), "path: found nothing; name a folder or a model of the hub.")


@dataclass(frozen=True)
class TaskConfig:
    """Where questions come from and how answers are graded."""

    name: str = "arithmetic"
    """A task of `malt tasks`, `custom` for a file of your own, or `module:attribute`."""
    train_path: str | None = None
    """JSONL, CSV or Parquet file: columns question, answer or the benchmark's own; else the hub."""
    eval_path: str | None = None
    """As `train_path`, for the evaluation questions."""
    num_train: int | None = None
    """Questions to search, the first ones of the file; default: all."""
    num_eval: int | None = None
    """Questions to evaluate on; default: all."""
    grader: str | None = None
    """Of a `custom` task: number, choice, exact, set or latex."""
    allow_code: bool = False
    """Let graders of code tasks execute what the model wrote (see `malt tasks`)."""

    def __post_init__(self):
        for name in ("num_train", "num_eval"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name}: found {value}, allowed: 1 or more.")


@dataclass(frozen=True)
class RoleConfig:
    """One turn of the pipeline."""

    name: str = "generator"
    """The role's name; later templates refer to this turn by it."""
    template: str | None = None
    """The role prefix with `{question}` and `{<earlier role>}`; default: the task's own."""
    branch: int = 3
    """Completions drawn from each prefix of this role in the search."""
    temperature: float = 0.3
    """Sampling temperature; 0 takes the likeliest token. 0.3 is the published one for 8B models."""
    top_p: float = 1.0
    """Smallest set of tokens with at least this probability; 1: all."""
    top_k: int = 0
    """Only this many likeliest tokens; 0: all."""
    max_new_tokens: int = 512
    """Longest completion, in tokens with the end token."""
    stop: tuple[str, ...] = field(default=(), metadata=settings.ONE_TEXT)
    """Texts that end the turn besides the model's end tokens."""
    train: Literal["none", "sft", "sft+dpo"] = "sft+dpo"
    """What this role learns; the published generator is SFT only."""
    answers: bool = True
    """Whether an answer is read from this turn; the last turn that answers gives the prediction."""

    def __post_init__(self):
        check_name(self.name)
        check(not self.name[0].isdigit(), f"name: found {self.name!r}, which begins with a digit.")
        check(all(self.stop), "stop: found an empty text; give texts of one character or more.")
        check(1 <= self.branch <= 64, f"branch: found {self.branch}, allowed: 1 to 64.")
        check(
            0 <= self.temperature <= 10,
            f"temperature: found {self.temperature}, allowed: 0 to 10.",
        )
        check(0 < self.top_p <= 1, f"top_p: found {self.top_p}, allowed: above 0, at most 1.")
        check(0 <= self.top_k < 1 << 31, f"top_k: found {self.top_k}, allowed: 0 (off) or more.")
        check(
            1 <= self.max_new_tokens <= 1 << 17,
            f"max_new_tokens: found {self.max_new_tokens}, allowed: 1 to 131072.",
        )


def _default_roles() -> tuple[RoleConfig, ...]:
    return (
        RoleConfig("generator", train="sft"),
        RoleConfig("verifier", answers=False),
        RoleConfig("refiner"),
    )


@dataclass(frozen=True)
class PipelineConfig:
    """The chain of roles; any names, any depth."""

    roles: tuple[RoleConfig, ...] = field(default_factory=_default_roles)
    """In the order of their turns."""
    overflow: Literal["refuse", "truncate"] = "refuse"
    """A prompt longer than the context: refuse the run, or cut the longest earlier turn's front."""

    def __post_init__(self):
        names = [role.name for role in self.roles]
        check(len(names) >= 1, "roles: found none; a pipeline has at least one role.")
        check(len(names) <= MAX_TURNS, f"roles: found {len(names)}, allowed: 1 to {MAX_TURNS}.")
        check_unique("roles", names)
        for index, name in enumerate(names):
            known = re.sub("^other_[0-9]+$", "others", name.casefold())
            check(
                known not in _MEANS_ELSE,
                f"roles.{index}.name: {name!r} is {_MEANS_ELSE.get(known)}; choose another.",
            )
        branches = [role.branch for role in self.roles]
        calls = sum(math.prod(branches[: depth + 1]) for depth in range(len(branches)))
        check(
            calls <= MAX_CALLS,
            f"roles: their branches make {settings.show(calls)} completions a question, allowed: "
            f"at most {MAX_CALLS:,}; lower a branch.",
        )
        check(self.roles[-1].answers, "roles: the last role must answer (answers: true).")


@dataclass(frozen=True)
class SearchConfig:
    """Expanding the tree and backing values up it (method, section 3)."""

    backup: Literal["mean", "max", "soft"] = "mean"
    """A node's value from its children's; the published one is mean."""
    softness: float = 0.25
    """Temperature of the soft maximum of `backup: soft`: 0 is max, large is mean."""
    threshold: float = 0.5
    """A node is positive if its value is above this, strictly; ties are negative."""
    block: int = 256
    """Questions expanded together and committed together; what a kill can cost."""
    shard: str = "1/1"
    """`i/k`: this process searches only the i-th of k equal ranges of the task."""

    def __post_init__(self):
        check(self.softness > 0, f"softness: found {self.softness}, allowed: above 0.")
        check(0 <= self.threshold < 1, f"threshold: found {self.threshold}, allowed: 0 to below 1.")
        check(self.block >= 1, f"block: found {self.block}, allowed: 1 or more.")
        index, count = map(settings.whole_number, self.shard.partition("/")[::2])
        check(
            index is not None and count is not None and 1 <= index <= count,
            f"shard: found {settings.show(self.shard)}, allowed: i/k with 1 <= i <= k, as 3/16.",
        )


@dataclass(frozen=True)
class DataConfig:
    """From values to each role's SFT examples and DPO pairs."""

    sft: Literal["positives", "pairs"] = "positives"
    """SFT on all positive nodes, or only on those that are chosen in a pair."""
    pairs: Literal["random", "best_worst", "all"] = "random"
    """Which positive x negative siblings: drawn by seed, the widest gap in value, or every one."""
    pairs_per_prefix: int = 1
    """At most this many pairs under one prefix (not for `all`)."""

    def __post_init__(self):
        check(
            self.pairs_per_prefix >= 1,
            f"pairs_per_prefix: found {self.pairs_per_prefix}, allowed: 1 or more.",
        )


@dataclass(frozen=True)
class SystemConfig:
    """A system to evaluate: a chain of `role:policy` turns, and how many draws vote."""

    name: str
    """Its name in files and tables."""
    chain: tuple[str, ...]
    """Turns as `role:policy`; policies: base, sft, malt, star. `debate:POLICY` is a debate."""
    label: str = ""
    """What the table calls it; default: the name."""
    votes: tuple[int, ...] = (1, 3)
    """Majority votes to report, each over the first k draws."""

    def __post_init__(self):
        # `@` is left to the rows of its votes (`malt@3`), `trees` to those measured beside it.
        check_name(self.name, also=".+-", most=MAX_SYSTEM_NAME)
        check(self.name.casefold() != "trees", "name: 'trees' is a folder of eval; choose another.")
        turns = len(self.chain)
        check(1 <= turns <= MAX_TURNS, f"chain: found {turns} turns, allowed: 1 to {MAX_TURNS}.")
        check(
            len(self.votes) >= 1 and 1 <= min(self.votes) <= max(self.votes) <= MAX_VOTES,
            f"votes: found {settings.show(self.votes)}, allowed: 1 to {MAX_VOTES} each.",
        )
        twice = len(set(self.votes)) < len(self.votes)
        check(not twice, f"votes: found {settings.show(self.votes)}; give each number once.")


@dataclass(frozen=True)
class EvalConfig:
    """Measuring systems on the same questions with the same keys."""

    systems: tuple[str, ...] = ()
    """Which of the built-in systems to measure; default: all of them."""
    extra: tuple[SystemConfig, ...] = ()
    """Systems of your own."""
    baseline: str = "sa@9"
    """The row every other is tested against."""
    block: int = 1024
    """Questions evaluated together and committed together."""
    trees: int = 32
    """Held-out questions whose whole trees are drawn before and after training; 0: none."""
    confidence: float = 0.95
    """Of the intervals."""

    def __post_init__(self):
        check(self.block >= 1, f"block: found {self.block}, allowed: 1 or more.")
        check(self.trees >= 0, f"trees: found {self.trees}, allowed: 0 (none) or more.")
        name, _, votes = self.baseline.rpartition("@")
        check(
            not name or 1 <= (settings.whole_number(votes) or 0) <= MAX_VOTES,
            f"baseline: found {settings.show(self.baseline)}, allowed: a row of the table, as sa@9 "
            f"with 1 to {MAX_VOTES} votes.",
        )
        check(
            0.5 <= self.confidence < 1,
            f"confidence: found {self.confidence}, allowed: 0.5 to below 1.",
        )


@dataclass(frozen=True)
class Ablation:
    """A variant of the run: some fields changed, everything unaffected reused."""

    name: str
    """Its folder under RUN/ablations and its name in the table."""
    set: dict[str, Any]
    """Dotted fields and their values, as `search.backup: max`."""
    label: str = ""
    """What the table calls it, after `MALT, `; default: its fields and values."""

    def __post_init__(self):
        check_name(self.name, also="-")
        check(bool(self.set), "set: found nothing; a variant changes at least one field.")
        for key in self.set:
            field = key.replace("-", "_")
            beside = ("ablations", "eval", *CANNOT_CHANGE_RESULTS)
            check(
                not any(field == name or field.startswith(f"{name}.") for name in beside),
                f"set: {settings.show(key)} cannot differ between a run and its variant, which is "
                "measured as the run is; leave it out.",
            )


@dataclass(frozen=True)
class ExportConfig:
    """What leaves the run, in Hugging Face format."""

    merged: bool = True
    """A merged model for each role, beside its PEFT adapter."""
    push_to_hub: str | None = None
    """A hub name to upload the export to; nothing is uploaded without one."""


@dataclass(frozen=True)
class Config:
    """One run."""

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
    """Variants to run and tabulate after the run itself."""
    seed: int = 0
    """Of every random draw: samples, pairs, data order, adapters."""
    rounds: int = 1
    """Search and training repeated from the last adapters; the published method has one round."""
    sharing: Literal["adapters", "shared"] = "adapters"
    """A LoRA adapter a role over one base, or one set of trained weights for all roles."""
    output_dir: str = "runs/malt"
    """The run directory; an existing one of the same config is continued."""
    mirror: str | None = None
    """Folder or URL (`s3://`, `gs://`) that finished files are copied to, and fetched from."""
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
        check(1 <= self.rounds <= 100, f"rounds: found {self.rounds}, allowed: 1 to 100.")
        check(0 <= self.seed < 1 << 32, f"seed: found {self.seed}, allowed: 0 to 2^32 - 1.")
        check_unique("ablations", [ablation.name for ablation in self.ablations])


CANNOT_CHANGE_RESULTS = frozenset(
    {
        *(
            "output_dir",
            "mirror",
            "quiet",
            "wandb",
            "trackio",
            "export.merged",
            "export.push_to_hub",
            "sampler.cache_dir",
        ),
        "mesh",
    }
)
"""Fields a run may be continued with another value of."""


def load(path: str | None, flags: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a YAML file (None: the defaults) with dotted flags over it.

    `quickstart` is the file in the package, where the current folder has none of that name.
    """
    if path == "quickstart" and not Path(path).exists():
        path = str(QUICKSTART)
    data = settings.read_yaml(path) if path else {}
    return from_dict(data, flags)


def from_dict(data: dict[str, Any], flags: list[str] | tuple[str, ...] = ()) -> Config:
    """Nested mappings over the defaults (a list replaces the default list), then flags."""
    merged = _over(settings.to_dict(Config()), data)
    return settings.build(Config, settings.apply_flags(merged, flags))


def _over(base: Any, data: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(data, dict):
        return data
    return {**base, **{key: _over(base.get(key), value) for key, value in data.items()}}
