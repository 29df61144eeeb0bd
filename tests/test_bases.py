"""A run whose verifier answers with a model of another family, with a tokenizer of its own."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import malt_jax as malt
import malt_jax.memory
import tiny
from malt_jax import cli, config
from malt_jax.commands.launch import check_input
from malt_jax.config.lora import LoraConfig
from malt_jax.config.run import Config
from malt_jax.data.role_data import RoleData
from malt_jax.errors import UserError
from malt_jax.export.peft import write_peft
from malt_jax.models import exchange
from malt_jax.models.exchange import Exchange, fit_together
from malt_jax.models.lora import init_adapter
from malt_jax.models.model import load_model
from malt_jax.models.tokenizer import load_tokenizer
from malt_jax.pipeline import Pipeline
from malt_jax.planning.bases import parts_of
from malt_jax.planning.chips import CHIPS, Chip, Target
from malt_jax.planning.needs import count_needs
from malt_jax.planning.plan import lay_out, plan_bases
from malt_jax.planning.specs import find_spec
from malt_jax.progress import Progress
from malt_jax.sampling import memory
from malt_jax.sampling.sampler import Sampler
from malt_jax.stages.bases import check_one_device
from malt_jax.stages.join import _check_weights
from malt_jax.stages.other_models import load_other
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import read_lines
from malt_jax.tree.node import Tree
from tiny_models import save_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # for `--task.name tiny:LUCK`
ROLES = ("generator", "verifier", "refiner")
OWN = "pipeline.roles.1.model"


def write_other(folder: Path) -> Path:
    """A Mistral over bytes with a chat template, as wide as no layer of `tiny`'s Llama."""
    tiny.write_model(folder, width=48, seed=7)
    tensors = load_file(folder / "model.safetensors")
    drawn = np.random.default_rng(7).standard_normal((264, 48)).astype(np.float32)
    save_file(tensors | {"model.embed_tokens.weight": drawn / 4}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    settings |= {"vocab_size": 264, "sliding_window": 64, "eos_token_id": 258, "bos_token_id": 256}
    (folder / "config.json").write_text(json.dumps(settings))
    save_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 10, 32]}))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    own, other = tiny.write_model(folder / "small"), write_other(folder / "large")
    return {"generator": own, "verifier": other, "refiner": own}


def settings(models: dict[str, Path]) -> dict:
    data = {**tiny.SMALL, "model": {"path": str(models["generator"])}, "sampler": tiny.ONE_BATCH}
    roles = [dict(role) for role in data["pipeline"]["roles"]]
    # One phase over the run's model and two over the verifier's: few programs to compile.
    roles[0]["train"], roles[2]["train"] = "none", "sft"
    roles[1] |= {"model": {"path": str(models["verifier"])}, "training": {"lora": {"rank": 16}}}
    data |= {"pipeline": {"roles": roles}, "search": {"block": 2}, "data": {"influence": True}}
    data["task"] = {**data["task"], "num_eval": 2}
    data["eval"] = {"trees": 0, "systems": ["sa", "malt"], "baseline": "sa@3"}
    return data


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def runs(models) -> tuple[Path, Path]:
    """A run at one go with both models resident, and one that exchanges them and was killed."""
    folder = models["generator"].parent
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(models)))
    whole, cut = folder / "whole", folder / "cut"
    line = ["--config", str(folder / "config.yaml"), "--quiet", "--output-dir"]
    for command in ("search", "label", "train", "eval", "export"):
        assert cli.main([command, *line, str(whole)]) == 0
    calls: list[int] = []
    original = malt.search

    def search(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "fit_together", lambda weights, memory: False)
        with pytest.MonkeyPatch.context() as kills, pytest.raises(Killed):
            kills.setattr(malt, "search", search)
            cli.main(["search", *line, str(cut)])
        for command in ("search", "label", "train", "eval"):
            assert cli.main([command, *line, str(cut)]) == 0
    return whole, cut


def searched(run: Path) -> list[dict]:
    paths = sorted((run / "rounds/000/trees").glob("*.jsonl"))
    return [record for path in paths for record in read_lines(path)]


def made(run: Path) -> dict[str, bytes]:
    """The files of trees, signals, role data and evaluation."""
    kinds = ("rounds/**/*.jsonl", "eval/*.jsonl")
    paths = [path for kind in kinds for path in sorted(run.glob(kind))]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.timeout(900)
def test_models_that_take_turns_give_what_resident_ones_give_killed_or_not(runs):
    whole, cut = map(made, runs)
    assert whole and whole == cut
    assert (runs[0] / "checkpoints/000/verifier/sft").is_dir()


def test_every_role_reads_and_writes_by_its_own_tokenizer(runs, models):
    tokenizers = {role: load_tokenizer(folder) for role, folder in models.items()}
    for node in (node for row in searched(runs[0]) for node in Tree.from_record(row).nodes):
        own = tokenizers[node.role]
        assert list(node.prompt_ids) == own.prompt_ids(node.prompt)
        ids = [i for i in node.token_ids if i not in own.end_ids]
        assert own.decode(ids) == node.completion
    data = next(read_lines(runs[0] / "rounds/000/data/verifier/sft.jsonl"))
    assert max(data["prompt_ids"]) > 55  # no token of the characters


def test_exports_manifest_and_cards_name_each_roles_base(runs, models):
    for role in ROLES:
        folder, base = runs[0] / "export" / role, models[role]
        kind = json.loads((base / "config.json").read_text())["model_type"]
        assert json.loads((folder / "config.json").read_text())["model_type"] == kind
        if role != "generator":  # which learns nothing here
            adapter = json.loads((folder / "adapter/adapter_config.json").read_text())
            assert adapter["base_model_name_or_path"] == str(base.resolve())
        for card in (folder / "README.md", runs[0] / "rounds/000/data" / role / "README.md"):
            assert str(base) in card.read_text()
    cards = {role: (runs[0] / "export" / role / "README.md").read_text() for role in ROLES}
    assert "### PEFT" in cards["verifier"] and "export/refiner/adapter" not in cards["verifier"]
    assert "export/refiner/adapter" in cards["generator"]
    assert "--max-lora-rank 16" in cards["verifier"]
    assert "--max-lora-rank 8" in cards["refiner"] and "(verifier) answer over" in cards["refiner"]
    known = json.loads((runs[0] / "manifest.json").read_text())
    assert known["bases"]["verifier"]["path"] == str(models["verifier"])
    assert known["bases"]["verifier"]["fingerprint"] != known["model"]["fingerprint"]


def test_a_finished_run_answers_with_each_roles_base(runs):
    pipeline = Pipeline.load(runs[0], trust_task_code=True)
    turns = pipeline.ask("1+1=?", votes=1).turns
    assert [turn.role for turn in turns] == list(ROLES)
    # Made at once and not when a thread of a server asks for them.
    for samplers in (pipeline.answerer.samplers, pipeline.answerer_with(int).samplers):
        assert isinstance(samplers, dict) and list(samplers) == list(ROLES)
        assert samplers["generator"] is samplers["refiner"] is not samplers["verifier"]


def test_other_weights_of_a_roles_base_are_refused(runs, models):
    tensors = models["verifier"] / "model.safetensors"
    weights = load_file(tensors)
    try:
        save_file({k: v + 1 for k, v in weights.items()}, tensors)
        with pytest.raises(UserError, match=r"verifier.*SHA-256"):
            Pipeline.load(runs[0], trust_task_code=True).ask("1+1=?", votes=1)
    finally:
        save_file(weights, tensors)


def test_only_the_weights_asked_for_last_are_held(models):
    turns = Exchange()
    small, large = (turns.add(lambda f=f: load_model(f), "none") for f in set(models.values()))
    leaf = weakref.ref(jax.tree.leaves(large.params)[0])
    first = np.asarray(jax.tree.leaves(small.params)[0])
    gc.collect()
    assert leaf() is None and turns.loads == 3
    _ = large.params
    assert np.array_equal(first, np.asarray(jax.tree.leaves(small.params)[0]))
    assert small.spec.family != large.spec.family and isinstance(small, malt.Model)


def test_caches_are_planned_beside_the_weights_of_their_own_model(models, monkeypatch):
    turns, held = Exchange(), []
    loads = (lambda f=f: load_model(f) for f in dict.fromkeys(models.values()))
    exchanged = [turns.add(load, "none") for load in loads]
    samplers = [Sampler(model) for model in exchanged]
    assert turns.loads == len(samplers)  # none was read again to make its sampler
    monkeypatch.setattr(memory, "free_bytes", lambda: held.append(turns._holder) or 1 << 30)
    for sampler in samplers:
        sampler.plan(8, 8, 1)
    assert [model.spec.family for model in held] == [s.spec.family for s in samplers]


@pytest.fixture
def session_in(tmp_path) -> Callable[..., Session]:
    def make(config: Config, **shared) -> Session:
        run = Path(tempfile.mkdtemp(dir=tmp_path))
        manifest.create(run, {"versions": {}, "config_sha256": ""})
        return Session(config, run, Progress(quiet=True), **shared)  # type: ignore[arg-type]

    return make


def test_each_base_is_read_once_by_who_uses_it_and_shared_with_variants(
    models, session_in, monkeypatch
):
    both, read = config.from_dict(settings(models)), []
    monkeypatch.setattr(
        "malt_jax.models.model.load_model",
        lambda path, **how: read.append(path) or load_model(path, **how),
    )
    lone = session_in(both)
    assert lone.bases.sampler_of("verifier").stats is lone.bases.stats
    assert lone.meter()()["completions"] == 0 and read == [str(models["verifier"])]
    read.clear()
    alone = config.from_dict({**settings(models), "pipeline": tiny.SMALL["pipeline"]})
    parent = session_in(alone)
    variant = session_in(both, shared=parent)
    for role in ROLES:
        variant.bases.model_of(role)
    assert read == [str(models["generator"]), str(models["verifier"])]
    assert variant.sampler is parent.sampler
    assert variant.bases.sampler_of("verifier").stats is parent.sampler.stats
    known = manifest.load(variant.run)
    assert known["model"]["path"] == read[0]
    assert {role: facts["path"] for role, facts in known["bases"].items()} == {"verifier": read[1]}


def test_other_models_are_measured_over_the_bases_and_take_turns_with_them(
    models, session_in, monkeypatch, tmp_path
):
    monkeypatch.setattr(exchange, "fit_together", lambda weights, memory: False)
    session = session_in(config.from_dict(settings(models)))
    for role in ("generator", "verifier"):
        sampler, _ = load_other(session, f"{models[role]}/../{models[role].name}")
        assert sampler is session.bases.sampler_of(role)
    other, _ = load_other(session, str(shutil.copytree(models["verifier"], tmp_path / "other")))
    assert session.bases.exchange and session.bases.exchange._holder is other.model


def test_a_variant_whose_adapter_does_not_fit_its_base_is_refused_at_launch(models, tmp_path):
    spec, lora = find_spec(str(models["generator"]))[0], LoraConfig(rank=2)
    write_peft(tmp_path, spec, init_adapter(spec, lora, jax.random.key(0)), lora, "base", None)
    data = settings(models)
    data["pipeline"]["roles"][2] |= {"adapter": str(tmp_path)}
    swapped = {"pipeline.roles.2.model.path": str(models["verifier"])}
    data["ablations"] = [{"name": "large", "set": swapped}]
    session = Session(config.from_dict(data), None, Progress(quiet=True))
    with pytest.raises(UserError, match=r"ablations\.large.*pipeline\.roles\.2\.adapter"):
        check_input(session, prompts=False)


@pytest.mark.parametrize("known", [{}, {"model": "a"}, {"model": "a", "bases": "b"}])
def test_a_run_that_knows_not_all_of_its_bases_joins_slices_that_do(known, tmp_path):
    def run(name: str, model: str | None = None, bases: str | None = None) -> Path:
        facts: dict = {"versions": {}, "config_sha256": ""}
        if model:
            facts["model"] = {"path": "small", "fingerprint": model}
        if bases:
            facts["bases"] = {"verifier": {"path": "large", "fingerprint": bases}}
        (tmp_path / name).mkdir()
        manifest.create(tmp_path / name, facts)
        return tmp_path / name

    session = SimpleNamespace(run=run("joined", **known))
    slices = [SimpleNamespace(run=run(n, "a", "b"), place=n) for n in "12"]
    _check_weights(session, slices)
    assert manifest.load(session.run)["bases"]["verifier"]["fingerprint"] == "b"
    for other in (run("x", "a", "c"), run("y", "c", "b"), run("z")):
        with pytest.raises(UserError, match="other weights"):
            _check_weights(session, [*slices, SimpleNamespace(run=other, place="3")])


def test_python_takes_a_model_per_role(runs, models):
    loaded = {folder: load_model(folder) for folder in set(models.values())}
    bases = {role: loaded[models[role]] for role in ROLES}
    one_batch = config.from_dict(settings(models)).sampler
    samplers = {folder: Sampler(model, one_batch) for folder, model in loaded.items()}
    by_role = {role: samplers[models[role]] for role in ROLES}
    chain = config.from_dict(settings(models)).pipeline
    questions = tiny.LUCK.load("train", limit=4)[:2]  # a block, as the run searches it
    forest = malt.search(bases, questions, chain, task=tiny.LUCK, sampler=by_role)
    assert [tree.to_record() for tree in forest.trees] == searched(runs[0])[:2]
    data = {role: RoleData() for role in ROLES}  # nothing to learn, but a policy to begin with
    widths = {
        role: jax.tree.leaves(weights)[0].shape
        for role, weights in malt.train(bases, data, pipeline=chain).items()
    }
    assert widths["generator"] == widths["refiner"] != widths["verifier"]


def test_a_frozen_role_is_planned_without_training(models):
    data = settings(models)
    data["pipeline"]["roles"][1] |= {"train": "none", "training": {}}
    data["pipeline"]["roles"][2]["training"] = {"lora": {"rank": 9}}
    run = config.from_dict(data)
    target = Target("one", CHIPS["h100"], 1, None)
    first, frozen = (
        lay_out(part.config, part.spec, target, part.roles, part.beside)
        for part in parts_of(run, {base: find_spec(base.path)[0] for base in run.bases}, target)
    )
    assert {program.kind for program in frozen.programs} == {"sampling"}
    assert {program.kind for program in first.programs} == {"sampling", "sft"}
    assert first.config.train.lora.rank == 9 > frozen.config.train.lora.rank
    assert count_needs(frozen.config, frozen.spec, ("sft", "dpo"), ("verifier",)).memory == 0


def test_a_container_bounds_the_memory_that_models_share(tmp_path, monkeypatch):
    monkeypatch.setattr(malt_jax.memory, "CONTROL_GROUP", tmp_path)
    whole = exchange.memory_here()
    assert whole and whole > 4096
    (tmp_path / "memory.max").write_text("4096\n")
    assert exchange.memory_here() == 4096
    (tmp_path / "memory.max").write_text("max\n")
    assert exchange.memory_here() == whole


def test_a_plan_says_whether_the_models_are_resident_together(models):
    run = config.from_dict(settings(models))
    specs = {base: find_spec(base.path)[0] for base in run.bases}
    device = Target("one", CHIPS["h100"], 1, None)
    plan = plan_bases(run, specs, device)
    assert plan["bases"]["together"] and plan["bases"]["reads"] == 2 and plan["fits"]
    assert [model["roles"] for model in plan["bases"]["models"]] == [
        ["generator", "refiner"],
        ["verifier"],
    ]
    assert [role["name"] for role in plan["others"][0]["work"]["roles"]] == ["verifier"]
    for refused in (
        lambda: parts_of(run, specs, Target("eight", CHIPS["h100"], 8, None)),
        lambda: check_one_device(run, 8),
    ):
        with pytest.raises(UserError, match="one device"):
            refused()
    one, other = parts_of(run, specs, device)
    assert one.beside == other.weights and other.beside == one.weights
    # The weights together take more than half of such a device, so that they take turns.
    small = Target("small", Chip("small", "gpu", 3 * one.weights, None, None), 1, None)
    assert not fit_together([one.weights, other.weights], 3 * one.weights)
    assert [part.beside for part in parts_of(run, specs, small)] == [0, 0]
