"""Every option has an effect: changing a field changes what a run computes, samples or writes.

Each field has an entry in `EFFECTS`: how it is changed, and where its effect is observed. Echoes
of the config (config.yaml, the manifest, help, range errors) are never observed. A new field
without an entry fails, and so does one whose observation stays the same.

Observations are made where the config is used: the trees of a tiny model, the training job that
is about to run (its plan, its learning rates, the traced program), the shapes of the sampler on a
chip, or the files of a stage. Programs are traced but hardly ever compiled, so a field takes a
fraction of a second.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import malt_jax as malt
import tiny
import training_model
from malt_jax import config, distributed
from malt_jax.commands.launch import check_tracker
from malt_jax.config.reading import assign, leaves, to_dict
from malt_jax.config.run import Config, all_fields
from malt_jax.data.examples import PolicyExample
from malt_jax.data.role_data import RoleData
from malt_jax.errors import UserError
from malt_jax.evaluation.systems import make_systems
from malt_jax.export.peft import write_peft
from malt_jax.hang import Watch
from malt_jax.models.hub import local_folder
from malt_jax.models.lora import init_adapter
from malt_jax.models.model import load_model
from malt_jax.models.spec import Mixture, ModelSpec
from malt_jax.models.tokenizer import load_tokenizer
from malt_jax.planning.chips import CHIPS, Target
from malt_jax.planning.plan import lay_out
from malt_jax.progress import Progress, open_progress
from malt_jax.sampling import memory
from malt_jax.sampling.device import use_cache_dir
from malt_jax.sampling.sampler import Sampler
from malt_jax.stages import evaluate, export, label, search
from malt_jax.stages import run as whole_run
from malt_jax.stages import train as train_stage
from malt_jax.stages.policies import start as start_identity
from malt_jax.stages.session import Session, load_split, load_task
from malt_jax.stages.variants import planned
from malt_jax.storage import writers
from malt_jax.storage.rundir import RunDir
from malt_jax.training import fit, phase
from malt_jax.training.loop import TrainOutcome, _batches
from malt_jax.training.saver import MemorySaver
from malt_jax.training.step import init_state, train_step
from malt_jax.training.weights import initial_weights
from malt_jax.tree.expand import sampling_params
from malt_jax.tree.prompts import render
from malt_jax.tree.roles import make_chain
from tiny_models import save_thinking_tokenizer


@dataclass(frozen=True)
class Effect:
    """How a field is changed, and the observation that must change with it."""

    observe: Callable[[Config, Path], Any]
    value: Any
    given: dict[str, Any] = field(default_factory=dict)
    """Other fields, without which this one does nothing."""
    path: str = ""
    """The field that is set, where its path holds an index."""
    beside: dict[str, Any] = field(default_factory=dict)
    """Fields that the observation does not see, and that must be changed with this one."""


# What a run would sample ------------------------------------------------------------------------


@cache
def model_folder(seed: int = 0) -> str:
    import tempfile

    return str(tiny.write_model(Path(tempfile.mkdtemp()) / "model", seed=seed))


@cache
def tiny_model() -> Any:
    return load_model(model_folder())


@cache
def shared_session() -> Session:
    """One model and one sampler for all observations, so that hardly anything is compiled twice."""
    session = Session(base(), None, Progress(quiet=True))
    bases, own = session.bases, session.config.model
    bases._models[own] = tiny_model()
    settings = replace(base().sampler, rows=8)
    bases._samplers[own] = Sampler(tiny_model(), settings, stats=bases.stats)
    return session


def base(**fields: Any) -> Config:
    """The config of a tiny run, with dotted fields changed."""
    data = to_dict(config.from_dict({**tiny.SMALL, "model": {"path": model_folder()}}))
    data["task"] |= {"num_train": 2, "num_eval": 3}
    data["eval"] |= {"trees": 0, "systems": ["sa"]}
    for name, value in fields.items():
        data = assign(data, name, value)
    return config.from_dict(data)


def trees(made: Config, folder: Path) -> Any:
    """The valued trees of two questions."""
    task = load_task(made)
    questions = load_split(task, "train", None, 2, made.seed)
    forest = malt.search(
        tiny_model(),
        questions,
        made.pipeline,
        task=task,
        seed=made.seed,
        backup=made.search.backup,
        softness=made.search.softness,
        threshold=made.search.threshold,
        spare=made.search.spare,
        sampler=shared_session().sampler,
    )
    return [tree.to_record() for tree in forest.trees]


def learned(made: Config, folder: Path) -> Any:
    """Every role's examples and pairs from the same trees."""
    data = malt.label(drawn_forest(), made.data, seed=made.seed)
    return {role: (d.sft, d.dpo, d.kto, d.pg) for role, d in data.items()}


@cache
def drawn_forest() -> Any:
    """Trees with many drafts, so that there is something to choose from."""
    made = base(**{"pipeline.roles.0.branch": 8, "task.num_train": 6})
    task = load_task(made)
    return malt.search(
        tiny_model(),
        load_split(task, "train", None, 6, 0),
        made.pipeline,
        task=task,
        sampler=shared_session().sampler,
    )


def overflowing_prompt(made: Config, folder: Path) -> str:
    """The prompt after a turn that leaves too little room, or its refusal."""
    tokenizer = tiny_model().tokenizer
    role = make_chain(made.pipeline, load_task(made).templates).roles[1]
    try:
        return render(
            role.template,
            "1",
            {"generator": "2" * 300},
            tokenizer,
            room=200,
            overflow=made.pipeline.overflow,
            where="here",
        ).text
    except UserError:
        return "refused"


THINKS = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "[assistant]{% if quiet is defined %}<think></think>{% endif %}"
)


def speaking(made: Config, folder: Path) -> Any:
    """With a thinking model: a role's prompt, the budget of its thoughts, what is passed on."""
    save_thinking_tokenizer(folder, THINKS)
    role = make_chain(made.pipeline, load_task(made).templates).roles[0]
    tokenizer = role.tokenizer(load_tokenizer(folder))
    budget = sampling_params(role, tokenizer).thought
    return tokenizer.render("1+1?"), budget, role.passed_on("2", "<think>one</think>")


def questions(made: Config, folder: Path) -> Any:
    """The questions of both splits, as the session reads them, with their prompts and grades."""
    session = Session(made, None, Progress(quiet=True))
    texts = ["18", "A", "eighteen", "{1, 2}"]
    try:
        every = [session.train_questions, session.eval_questions]
        graded = session.task.grader.grade(texts, [every[0][0]] * len(texts))
    except UserError:
        return "refused"
    return every, session.task.templates, graded


def grading(made: Config, folder: Path) -> str:
    """The task's grader, or the refusal to make one."""
    try:
        return type(load_task(made).grader).__name__
    except UserError:
        return "refused"


# What a run would train -------------------------------------------------------------------------


def jobs(made: Config, folder: Path) -> Any:
    """The training job of each phase: batches, packed rows, learning rates, the traced program."""
    model, found = tiny_trainee(), []

    def capture(job, start, on_step=None):
        state = init_state(job.program, start)
        found.append(
            {
                "plan": repr(job.plan),
                "ids": job.ids,
                "totals": job.totals,
                "rates": job.rates.tolist(),
                "held out": job.held_out is not None,
                "start": jax.tree.map(lambda x: np.asarray(x).tolist(), start),
                "program": traced(job, state),
            }
        )
        return TrainOutcome(start, 0, [], 0.0, 0, 0.0, 0, False, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase, "run", capture)
        patch.setattr(
            phase.Phase,
            "score",
            lambda self, weights, plan, count=None, on_batch=None: (
                (np.zeros(count or self.sequences, np.float32),) * 2
            ),
        )
        patch.setattr(
            phase.Phase,
            "score_tokens",
            lambda self, *_: np.zeros(
                sum(len(example.completion_ids) for example in self.examples), np.float32
            ),
        )
        policies: list[str] = []
        malt.train(
            model,
            role_data(margins=made.data.margins == "gap"),
            pipeline=made.pipeline,
            sharing=made.sharing,
            lora=made.train.lora,
            sft=made.train.sft,
            dpo=made.train.dpo,
            kto=made.train.kto,
            pg=made.train.pg,
            seed=made.seed,
            on_phase=lambda name, _: policies.append(name),
        )
    return policies, found


@cache
def role_data(margins: bool = False) -> dict[str, RoleData]:
    """Two completions of each prompt, and pairs for three steps."""
    first, second = training_model.sft_examples(6), training_model.sft_examples(6, seed=1)
    siblings = [
        example
        for a, b in zip(first, second, strict=True)
        for example in (a, replace(b, prompt_ids=a.prompt_ids))
    ]
    dpo, kto = training_model.dpo_examples(24), training_model.kto_examples(24)
    dpo = [replace(pair, margin=float(margins)) for pair in dpo]
    return {"verifier": RoleData(siblings, dpo, kto, policy_examples())}


def policy_examples() -> list[PolicyExample]:
    """Completions under a policy to which every token is certain."""
    return [
        PolicyExample(
            e.prompt_ids, e.completion_ids, e.id, (0.0,) * len(e.completion_ids), (-1.0) ** i
        )
        for i, e in enumerate(training_model.sft_examples(48))
    ]


@cache
def tiny_trainee() -> Any:
    spec = replace(training_model.SPEC, num_layers=1)
    return training_model.tiny_model(spec, stacked=False)


def traced(job: Any, state: Any) -> str:
    """The traced step, once for equal programs and shapes."""
    arguments = (state, job.frozen, _batches(job, 0)[0])
    shapes = str(jax.tree.map(np.shape, arguments))
    if (job.program, shapes) not in TRACED:
        step = lambda *args: train_step(job.program, *args)  # noqa: E731
        TRACED[job.program, shapes] = str(jax.make_jaxpr(step)(*arguments))
    return TRACED[job.program, shapes]


TRACED: dict[Any, str] = {}


def start(made: Config, folder: Path) -> Any:
    """The weights that training starts from, and what scales them."""
    model = tiny_trainee()
    weights = initial_weights(model, made.train.lora, full=made.train.full, name="a")
    return str(jax.tree.structure(weights)), jax.tree.map(
        lambda x: np.asarray(x).tolist(), jax.tree.leaves(weights)
    )


def trained(made: Config, folder: Path) -> Any:
    """A finished training: its measured steps, where it ended and which checkpoints it made."""
    saver, out = RecordingSaver(), []
    model = tiny_trainee()
    policy = initial_weights(model, made.train.lora, name="a")
    examples = {
        "sft": training_model.sft_examples(12),
        "dpo": training_model.dpo_examples(12),
        "kto": training_model.kto_examples(40),
        "pg": policy_examples()[:12],
    }[folder.name]
    try:
        outcome = fit.train_phase(
            model, policy, examples, made.train.phase(folder.name), saver=saver
        )
    except UserError:
        return "stopped"
    measured = [i for i, step in enumerate(outcome.log) if "held_out_loss" in step]
    return measured, outcome.steps, outcome.counts["held_out"], saver.made, out


class RecordingSaver(MemorySaver):
    """Remembers the names of the checkpoints that were written."""

    def __init__(self):
        super().__init__()
        self.made: list[str] = []

    def save(self, name, *args, **kwargs):
        self.made.append(name)
        return super().save(name, *args, **kwargs)


# What a run would use of its devices ------------------------------------------------------------


def placement(made: Config, folder: Path) -> Any:
    """The programs on eight chips: mesh, batch sizes, and each argument's shape and sharding."""
    return placement_of(made, tiny_model().spec)


def expert_placement(made: Config, folder: Path) -> Any:
    """The same for a model with eight experts."""
    return placement_of(made, replace(tiny_model().spec, mixture=Mixture(8, 2)))


def kernel_placement(made: Config, folder: Path) -> Any:
    """The same for a model whose heads are wide enough for the kernel."""
    return placement_of(made, replace(tiny_model().spec, head_dim=64))


def placement_of(made: Config, spec: ModelSpec) -> Any:
    setting = lay_out(made, spec, Target("eight", CHIPS["v5e"], 8, None))
    programs = [
        (program.name, program.shape, described(program.build(spec.num_layers)))
        for program in setting.programs
    ]
    return setting.layout.shape, repr(setting.sizes.shapes), setting.sizes.prefill, programs


def described(program: tuple[Callable, tuple[Any, ...]]) -> str:
    function, arguments = program
    keywords = getattr(function, "keywords", {})
    return f"{keywords} " + " ".join(
        f"{leaf.shape} {leaf.dtype} {getattr(leaf.sharding, 'spec', None)}"
        for leaf in jax.tree.leaves(arguments)
    )


def decode_chunk(made: Config, folder: Path) -> Any:
    """The traced decode program."""
    spec = shared_session().model.spec
    setting = lay_out(made, spec, Target("one", CHIPS["v5e"], 1, None))
    (decode,) = (program for program in setting.programs if program.name == "decode")
    function, arguments = decode.build(1)
    return str(jax.make_jaxpr(function)(*arguments))


def sampled_weights(made: Config, folder: Path) -> list[str]:
    """The dtypes of the weights that the sampler computes with."""
    sampler = Sampler(tiny_model(), made.sampler)
    return [str(leaf.dtype) for leaf in jax.tree.leaves(sampler.params)]


def streams(made: Config, folder: Path) -> int:
    return memory.stream_count(made.sampler, "cpu", False)


def compile_cache(made: Config, folder: Path) -> Any:
    """The folder of compiled programs that a sampler sets."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        use_cache_dir(made.sampler.cache_dir)
        return jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def joining(made: Config, folder: Path) -> Any:
    """How this process would join the others of the run."""
    said: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.distributed, "is_initialized", lambda: False)
        patch.setattr(jax.distributed, "initialize", lambda **given: said.update(given))
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(writers, "_processes", [])
        patch.setattr(Watch, "start", lambda watch: said.update(hang=watch._limit))
        before = jax.config.jax_cpu_collectives_implementation
        try:
            distributed.initialize(made.mesh)
        finally:
            jax.config.update("jax_cpu_collectives_implementation", before)
    return said


def starting_weights(made: Config, folder: Path) -> Any:
    """What the first role is before any training, with an adapter made in `folder`."""
    spec, lora = tiny_model().spec, made.train.lora
    made_elsewhere = init_adapter(spec, lora, jax.random.key(5))
    made_elsewhere = jax.tree.map(lambda x: x + 1.0, made_elsewhere)
    write_peft(folder / "start", spec, made_elsewhere, lora, "base", None)
    session = Session(made, None, Progress(quiet=True))
    session.bases._models[made.model] = tiny_model()
    name = made.pipeline.roles[0].name
    leaves = jax.tree.leaves(session.initial_weights(name))
    return start_identity(session, name), [np.asarray(leaf).tolist() for leaf in leaves]


def own_base(made: Config, folder: Path) -> Any:
    """The model that the second role answers with, and the adapter that it starts from."""
    with opened(made, folder) as session:
        leaves = jax.tree.leaves(session.initial_weights("verifier"))
        return session.bases.model_of("verifier").spec, [leaf.shape for leaf in leaves]


def loaded_model(made: Config, folder: Path) -> Any:
    """The folder and revision that are looked up on the hub, or read."""
    with pytest.MonkeyPatch.context() as patch:
        asked: list[Any] = []

        def download(name, revision=None, **_):
            asked.append((name, revision))
            return model_folder()

        patch.setattr("huggingface_hub.snapshot_download", download)
        found, _ = local_folder(made.model.path, made.model.revision)
    return asked, Path(found, "model.safetensors").read_bytes()


# What a run would write -------------------------------------------------------------------------


@contextlib.contextmanager
def opened(made: Config, folder: Path) -> Iterator[Session]:
    """A session on a new run directory that shares the model and the sampler."""
    out = folder / made.output_dir
    with RunDir.open(
        out, to_dict(made), "test", mirror=made.mirror, mirror_seconds=made.mirror_seconds
    ) as run:
        session = Session(made, run, Progress(quiet=True), shared=shared_session())
        yield session
        session.close()


def written(*stages: Callable) -> Callable[[Config, Path], Any]:
    """The files that these stages write, without those that tell times or repeat the config."""

    def observe(made: Config, folder: Path) -> Any:
        with opened(made, folder) as session:
            for stage in stages:
                stage(session)
        return contents(folder)

    return observe


def copies(made: Config, folder: Path) -> Any:
    """How often unfinished work is copied to the mirror."""
    with opened(made, folder) as session:
        assert session.run.uploader is not None
        return session.run.uploader._seconds


def checkpoints_by_time(made: Config, folder: Path) -> Any:
    """Whether a checkpoint is due a moment after a phase of training has begun."""
    seen = []

    def train(*_: Any, saver: Any, **__: Any) -> None:
        time.sleep(0.01)
        seen.append(saver.save_due())
        raise InterruptedError

    with opened(made, folder) as session, pytest.MonkeyPatch.context() as patched:
        patched.setattr(malt, "train", train)
        search.search(session, 0)
        label.label(session, 0)
        with contextlib.suppress(InterruptedError):
            train_stage.train(session, 0)
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        volatile = ("config.yaml", "manifest", "cost/", ".lock", "metrics", "README.md")
        if path.is_file() and not any(word in name for word in volatile):
            kept[name] = path.read_bytes()
    return kept


def searched(session: Session) -> None:
    search.search(session, 0)


def sampler_calls(made: Config, folder: Path) -> list[str]:
    """The calls of the sampler in a search; what they draw is the same."""
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch, opened(made, folder) as session:
        for name in ("sample", "open"):
            method = getattr(session.sampler, name)
            note = lambda *a, name=name, method=method, **k: calls.append(name) or method(*a, **k)  # noqa: E731
            patch.setattr(session.sampler, name, note)
        search.search(session, 0)
    return calls


def labelled(session: Session) -> None:
    label.label(session, 0)


def approves(text: str) -> bool:
    """A verdict reader of a user's, for `verdict: test_options:approves`."""
    return True


def systems(made: Config, folder: Path) -> Any:
    """The systems and variants that would be evaluated."""
    session = Session(made, None, Progress(quiet=True))
    own, variants = planned(session)
    named = [(s.name, s.label, s.votes, s.draws, [t.policy for t in s.turns]) for s in own]
    return named, [
        (v.folder, v.system.name, v.system.label, v.config.search, v.config.task) for v in variants
    ]


def speakers(made: Config, folder: Path) -> Any:
    """The roles of each built-in system: which turns answer decides who may come last."""
    templates = load_task(made).templates
    pipeline = make_chain(made.pipeline, templates)
    return [
        [(turn.role.name, turn.policy) for turn in system.turns]
        for system in make_systems(made.eval, pipeline, templates)
    ]


def compared(made: Config, folder: Path) -> Any:
    """The table of results."""
    with opened(made, folder) as session:
        results = evaluate.evaluate(session)
    return results["baseline"], results["systems"]


def weighted(made: Config, folder: Path) -> Any:
    """How far the critiques of an evaluation support the answers they read."""
    with opened(made, folder) as session:
        evaluate.evaluate(session)
        records = session.run.eval("ma").read_text().splitlines()
    return [[turn.get("support") for turn in json.loads(line)["turns"]] for line in records]


def blocks(made: Config, folder: Path) -> list[str]:
    """The blocks of questions that are committed together."""
    with opened(made, folder) as session:
        evaluate.evaluate(session)
    return sorted(json.loads(next(folder.rglob("eval-blocks.json")).read_text()))


def exported(made: Config, folder: Path) -> Any:
    """The exported files, and what is uploaded."""
    uploaded: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_push", lambda session, name: uploaded.append(name))
        with opened(made, folder) as session:
            export.export(session)
    return uploaded, list(contents(folder))


def labelled_and_exported(made: Config, folder: Path) -> list[str]:
    """The files of the run's dataset after its trees were labelled; the roles are left out."""
    with pytest.MonkeyPatch.context() as patch, opened(made, folder) as session:
        patch.setattr(export, "export_role", lambda *_, **__: None)
        search.search(session, 0)
        label.label(session, 0)
        export.export(session)
    return [name for name in contents(folder) if "dataset" in name]


def rounds(made: Config, folder: Path) -> list[str]:
    """The stages of the whole run, in order."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("search", "label", "train", "evaluate", "export", "report"):
            note = lambda session, round="", name=name: done.append(f"{name}{round}")  # noqa: E731
            patch.setattr(whole_run, name, note)
        whole_run.run(Session(made, None, Progress(quiet=True)))
    return done


def progress(made: Config, folder: Path) -> str:
    """What a run says on standard error."""
    import io

    said = io.StringIO()
    with contextlib.redirect_stderr(said), open_progress(made.quiet) as shown:
        shown.note("hello")
    return said.getvalue().rpartition("]")[2]


def tracker(made: Config, folder: Path) -> list[str]:
    """What the trackers are sent."""
    sent: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("wandb", "trackio"):
            fake = types.ModuleType(name)
            fake.__spec__ = types.SimpleNamespace(name=name)
            fake.log = fake.finish = lambda *_, **__: None
            fake.init = lambda fake=fake, **_: sent.append(fake.__name__) or fake
            patch.setitem(sys.modules, name, fake)
        check_tracker(made)
        with opened(made, folder) as session:
            session.metrics.series("train").log(1, {"loss": 1.0})
    return sent


# The entries ------------------------------------------------------------------------------------

ROLE = "pipeline.roles.N."
FIRST = "pipeline.roles.0."
TREES: dict[str, Any] = {
    "template": "Q {question} ",
    "branch": 2,
    "temperature": 2.0,
    "top_p": 0.2,
    "top_k": 1,
    "max_new_tokens": 4,
    "stop": ["a", "e", "i", "o", "u"],
}
EXTRA = [{"name": "mine", "chain": ["generator:base"]}]
ABLATION = [{"name": "a", "set": {"search.backup": "max"}}]
OPTIM = {
    "name": "lion",
    "learning_rate": 0.01,
    "schedule": "constant",
    "warmup": 0.9,
    "final": 0.5,
    "weight_decay": 0.1,
    "beta1": 0.5,
    "beta2": 0.5,
    "clip": 0.0,
}
LOOP = {
    "max_length": 12,
    "micro_tokens": 64,
    "steps": 7,
    "row_length": 192,
    "remat": "full",
    "logit_chunk": 2,
    "held_out": 0.4,
    "explode": 1e-9,
}
WORSENS = {
    **{"loop.held_out": 0.3, "loop.eval_every": 1, "optim.learning_rate": 1.0},
    **{"epochs": 4, "batch_size": 2},
}
MEASURED = {
    "eval_every": (5, {"loop.held_out": 0.3, "epochs": 4, "batch_size": 2}),
    "patience": (1, WORSENS),
    "save_every": (1, {}),
}
PHASE = {
    "sft": {"epochs": 2, "batch_size": 3, "siblings_together": True},
    "dpo": {
        "epochs": 2,
        "batch_size": 3,
        "beta": 0.5,
        "loss": "ipo",
        "label_smoothing": 0.1,
        "length_normalised": True,
        "nll_weight": 0.5,
        "offset": 0.5,
    },
    "kto": {
        "epochs": 2,
        "batch_size": 3,
        "beta": 0.5,
        "desirable_weight": 2.0,
        "undesirable_weight": 2.0,
    },
    "pg": {"epochs": 3, "batch_size": 3, "clip": 0.5, "kl_weight": 0.5},
}
LEARNS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {},
    "kto": {"pipeline.roles.1.train": "kto"},
    "pg": {"pipeline.roles.1.train": "pg"},
}
EFFECTS: dict[str, Effect] = {
    "model.path": Effect(loaded_model, "quickstart"),
    "model.revision": Effect(loaded_model, "v1", {"model.path": "org/model"}),
    "model.dtype": Effect(placement, "float32"),
    "model.quantize": Effect(placement, "int8"),
    ROLE + "model": Effect(own_base, {"path": "quickstart"}, path="pipeline.roles.1.model"),
    ROLE + "adapter": Effect(starting_weights, "{here}/pipeline/start", path=FIRST + "adapter"),
    "task.name": Effect(questions, "arithmetic"),
    "task.train_path": Effect(questions, "more.jsonl", {"task.name": "custom"}),
    "task.eval_path": Effect(questions, "more.jsonl", {"task.name": "custom"}),
    "task.num_train": Effect(questions, 1),
    "task.num_eval": Effect(questions, 1),
    "task.num_validation": Effect(questions, 2),
    "task.grader": Effect(questions, "exact", {"task.name": "custom"}),
    "task.allow_code": Effect(grading, True, {"task.name": "mbpp"}),
    **{ROLE + name: Effect(trees, value, path=FIRST + name) for name, value in TREES.items()},
    ROLE + "name": Effect(
        trees, "writer", {"pipeline.roles.2.template": "W {question} "}, "pipeline.roles.2.name"
    ),
    ROLE + "system": Effect(speaking, "Be brief.", path=FIRST + "system"),
    ROLE + "chat_template_kwargs": Effect(
        speaking, {"quiet": True}, path=FIRST + "chat_template_kwargs"
    ),
    ROLE + "thinking.budget": Effect(speaking, 2, path=FIRST + "thinking.budget"),
    ROLE + "thinking.conclusion": Effect(
        speaking,
        "So ",
        {FIRST + "max_new_tokens": 64, FIRST + "thinking.budget": 2},
        FIRST + "thinking.conclusion",
    ),
    ROLE + "thinking.pass_on": Effect(speaking, True, path=FIRST + "thinking.pass_on"),
    ROLE + "training": Effect(
        jobs, {"sft": {"epochs": 2}, "lora": {"rank": 2}}, path="pipeline.roles.1.training"
    ),
    ROLE + "train": Effect(jobs, "sft", path="pipeline.roles.1.train"),
    ROLE + "verdict": Effect(
        written(searched, labelled), "test_options:approves", path="pipeline.roles.1.verdict"
    ),
    ROLE + "answers": Effect(systems, True, {"eval.systems": []}, "pipeline.roles.1.answers"),
    "pipeline.overflow": Effect(overflowing_prompt, "truncate"),
    "search.backup": Effect(trees, "max"),
    "search.softness": Effect(trees, 5.0, {"search.backup": "soft"}),
    "search.threshold": Effect(trees, 0.9),
    "search.spare": Effect(trees, 1),
    "search.block": Effect(written(searched), 1),
    "search.streaming": Effect(sampler_calls, True),
    "search.shard": Effect(written(searched), "1/2"),
    "data.sft": Effect(learned, "pairs"),
    "data.pairs": Effect(learned, "best_worst"),
    "data.pairs_per_prefix": Effect(learned, 3),
    "data.positives": Effect(learned, "both"),
    "data.weights": Effect(learned, "advantage"),
    "data.min_gap": Effect(learned, 0.9, {"data.pairs": "all"}),
    "data.margins": Effect(learned, "gap", beside={"train.dpo.offset": 1.0}),
    "data.advantage": Effect(learned, "global"),
    "data.influence": Effect(written(searched, labelled), True),
    "train.full": Effect(start, True),
    "train.lora.rank": Effect(start, 2),
    "train.lora.alpha": Effect(start, 7.0),
    "train.lora.targets": Effect(start, ["q"]),
    "train.lora.dropout": Effect(jobs, 0.5),
    "train.lora.rslora": Effect(start, True),
    "train.lora.zero_side": Effect(start, "a"),
    **{
        f"train.{phase}.{name}": Effect(jobs, value, LEARNS[phase])
        for phase, own in PHASE.items()
        for name, value in (
            *own.items(),
            *((f"loop.{name}", value) for name, value in LOOP.items()),
            *((f"optim.{name}", value) for name, value in OPTIM.items()),
        )
    },
    "train.sft.optim.final": Effect(jobs, 0.5),
    **{
        f"train.{phase}.loop.{name}": Effect(
            trained, value, {f"train.{phase}.{n}": v for n, v in given.items()}
        )
        for phase in PHASE
        for name, (value, given) in MEASURED.items()
    },
    "sampler.rows": Effect(placement, 16),
    "sampler.width": Effect(placement, 1),
    "sampler.streams": Effect(streams, 5),
    "sampler.memory_gb": Effect(placement, 0.001, {"task.num_train": 500}),
    "sampler.prefix_buckets": Effect(placement, [96, 200]),
    "sampler.new_token_buckets": Effect(placement, [12]),
    "sampler.prefill_tokens": Effect(placement, 512),
    "sampler.prefill_lane": Effect(placement, 32),
    "sampler.chunk_steps": Effect(decode_chunk, 3),
    "sampler.weights": Effect(sampled_weights, "int8"),
    "sampler.cache": Effect(placement, "int8"),
    "sampler.attention": Effect(kernel_placement, "pallas"),
    "sampler.cache_dir": Effect(compile_cache, "elsewhere"),
    "eval.systems": Effect(systems, ["sa", "ma"]),
    "eval.extra.N.name": Effect(systems, "yours", {"eval.extra": EXTRA}, "eval.extra.0.name"),
    "eval.extra.N.chain": Effect(
        systems, ["refiner:malt"], {"eval.extra": EXTRA}, "eval.extra.0.chain"
    ),
    "eval.extra.N.label": Effect(systems, "Mine", {"eval.extra": EXTRA}, "eval.extra.0.label"),
    "eval.extra.N.votes": Effect(systems, [5], {"eval.extra": EXTRA}, "eval.extra.0.votes"),
    "eval.baseline": Effect(compared, "sa@3"),
    "eval.block": Effect(blocks, 2),
    "eval.stop_when_certain": Effect(written(evaluate.evaluate), True),
    "eval.trees": Effect(written(evaluate.evaluate), 1),
    "eval.confidence": Effect(compared, 0.5),
    "eval.split": Effect(questions, "train"),
    "eval.temperatures": Effect(systems, [0.0, 0.7]),
    "eval.models": Effect(systems, ["org/model"]),
    "export.dataset": Effect(labelled_and_exported, True),
    "export.merged": Effect(exported, False),
    "export.push_to_hub": Effect(exported, "org/name"),
    "mesh.data": Effect(placement, 2, {"mesh.fsdp": 0, "mesh.tensor": 2}),
    "mesh.fsdp": Effect(placement, 4),
    "mesh.tensor": Effect(placement, 2),
    "mesh.expert": Effect(expert_placement, 4),
    "mesh.slices": Effect(placement, 2),
    "mesh.rules": Effect(placement, {"vocab": ""}, {"mesh.tensor": 2}),
    "mesh.coordinator": Effect(joining, "b:1", {"mesh.processes": 2, "mesh.process": 0}),
    "mesh.processes": Effect(joining, 3, {"mesh.coordinator": "a:1", "mesh.process": 0}),
    "mesh.process": Effect(joining, 1, {"mesh.coordinator": "a:1", "mesh.processes": 2}),
    "mesh.heartbeat": Effect(
        joining, 50, {"mesh.coordinator": "a:1", "mesh.processes": 2, "mesh.process": 0}
    ),
    "mesh.hang": Effect(
        joining, 0, {"mesh.coordinator": "a:1", "mesh.processes": 2, "mesh.process": 0}
    ),
    "ablations.N.name": Effect(systems, "b", {"ablations": ABLATION}, "ablations.0.name"),
    "ablations.N.set": Effect(
        systems, {"search.backup": "soft"}, {"ablations": ABLATION}, "ablations.0.set"
    ),
    "ablations.N.rule": Effect(systems, "both", {"ablations": ABLATION}, "ablations.0.rule"),
    "ablations.N.label": Effect(systems, "Max", {"ablations": ABLATION}, "ablations.0.label"),
    "seed": Effect(trees, 1),
    "rounds": Effect(rounds, 2),
    "sharing": Effect(jobs, "shared"),
    "output_dir": Effect(written(searched), "elsewhere"),
    "mirror": Effect(written(searched), "{here}/mirror/copy"),
    "mirror_seconds": Effect(copies, 7.0, {"mirror": "{here}/mirror/copy"}),
    "save_minutes": Effect(checkpoints_by_time, 1e-6),
    "quiet": Effect(progress, True),
    "wandb": Effect(tracker, True),
    "trackio": Effect(tracker, True),
}
GIVEN = {"train.dpo.offset": {"data.margins": "gap", "train.dpo.offset": 1.0},
         "mesh.coordinator": {"mesh.coordinator": "a:1"}, "mesh.processes": {"mesh.processes": 2},
         "mesh.process": {"mesh.process": 0}}  # fmt: skip
"""Values to change from, where the default together with the other fields would be refused."""


PURE = (jobs, trees, learned, start, placement, systems, decode_chunk)
"""Observations that depend on the config alone, so that the unchanged one is made once."""
OBSERVED: dict[Any, Any] = {}


def test_every_option_has_an_entry_here():
    known = {field.path for field in all_fields()}
    assert known == set(EFFECTS)


@pytest.mark.parametrize("name", sorted(EFFECTS))
def test_an_option_changes_what_a_run_computes_or_writes(name, tmp_path, monkeypatch):
    effect = EFFECTS[name]
    monkeypatch.chdir(tmp_path)
    for file, count in (("some.jsonl", 2), ("other.jsonl", 3), ("more.jsonl", 4)):
        rows = [{"question": f"{file}{i}", "answer": str(i)} for i in range(count)]
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {**effect.given, **GIVEN.get(name, {})}
    if given.get("task.name") == "custom":
        given |= {"task.train_path": "some.jsonl", "task.eval_path": "other.jsonl"}
        given |= {"task.num_eval": None, "task.num_train": None}
    value = effect.value
    if isinstance(value, str):
        value = value.replace("{here}", str(tmp_path / "1"))
    before = base(**given)
    after = base(**{**given, **effect.beside, effect.path or name: value})
    assert dict(leaves(to_dict(before))) != dict(leaves(to_dict(after)))
    observed = []
    for number, made in enumerate((before, after)):
        folder = tmp_path / str(number) / name.split(".")[1 if "train." in name else 0]
        folder.mkdir(parents=True)
        key = (effect.observe, json.dumps(to_dict(made)))
        if effect.observe not in PURE or key not in OBSERVED:
            OBSERVED[key] = effect.observe(made, folder)
        observed.append(OBSERVED[key])
    assert observed[0] != observed[1]
