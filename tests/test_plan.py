"""What `malt plan` says before a run: counts, memory, communication, and whether it fits."""

from __future__ import annotations

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from malt_jax import config
from malt_jax.commands.launch import print_table
from malt_jax.config.reading import to_dict
from malt_jax.config.run import Config
from malt_jax.errors import UserError
from malt_jax.models.hf_config import read_spec
from malt_jax.models.lora import init_adapter
from malt_jax.models.model import load_model
from malt_jax.models.spec import STACKED_FROM
from malt_jax.planning import plan as plan_module
from malt_jax.planning.abstract_programs import device_bytes
from malt_jax.planning.chips import CHIPS, Chip, Target, find_target
from malt_jax.planning.compiler import DEPTHS, measure, product_flops, total_bytes
from malt_jax.planning.hlo import collectives
from malt_jax.planning.hours import executions, stages
from malt_jax.planning.needs import count_needs
from malt_jax.planning.plan import count_parameters, lay_out, measured, plan_run
from malt_jax.planning.specs import find_spec
from malt_jax.planning.table import tables
from malt_jax.planning.training_steps import largest
from malt_jax.planning.work import count_work
from malt_jax.sampling.memory import first_shape
from malt_jax.sampling.prefill import prefill_shape
from malt_jax.sampling.sampler import Sampler
from malt_jax.training.step import init_state, make_program
from malt_jax.training.weights import initial_weights

ROOT = Path(__file__).parents[1]
LIBTPU = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)
HLO = """HloModule jit_f
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g = f32[8,4]{1,0} all-gather(%x), dimensions={0}
  %s = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%y), dimensions={0}
  %d = bf16[8,4]{1,0} all-gather-done(%s)
}
%cond (p: (s32[], f32[8,4])) -> pred[] {
}
ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %r = f32[8,4]{1,0} all-reduce(%p), to_apply=%add
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("plan") / "model", layers=2)
    return config.from_dict({**tiny.SMALL, "model": {"path": str(folder)}}), read_spec(folder)


@pytest.fixture(scope="module")
def deeper(small):
    """A model of more layers than the depths at which a TPU's programs are compiled."""
    settings, spec = small
    return settings, replace(spec, num_layers=DEPTHS[-1] + 1)


def test_a_loops_collectives_count_as_often_as_it_runs():
    assert collectives(HLO) == {
        "all-reduce": {"count": 1, "bytes": 128},
        "all-gather": {"count": 10, "bytes": 5 * (128 + 64)},
    }


def test_collectives_in_branches_count():
    text = HLO.replace("body=%body", "body=%either").replace(
        "ENTRY",
        """%either (p: (s32[])) -> (s32[]) {
  %c = (s32[], f32[8,4]) conditional(%p), true_computation=%body, false_computation=%cond
}
ENTRY""",
    )
    assert collectives(text) == collectives(HLO)


def test_products_in_scans_count_as_often_as_they_run():
    def f(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

    jaxpr = jax.make_jaxpr(f)(jnp.zeros((4, 4))).jaxpr
    assert product_flops(jaxpr) == 7 * 2 * 4**3


def test_the_published_tree_is_counted():
    work = count_work(config.from_dict({"task": {"name": "gsm8k"}}))
    assert work.train_questions == 7473
    assert work.calls == 39 * 7473
    assert [role.prefixes for role in work.roles] == [7473, 3 * 7473, 9 * 7473]
    assert work.roles[0].examples.get("dpo", 0) == 0  # the generator learns by SFT alone


def test_a_slice_has_its_share_of_the_questions():
    data = {"task": {"name": "gsm8k", "num_train": 100}}
    shares = [
        count_work(config.from_dict({**data, "search": {"shard": f"{i}/3"}})).train_questions
        for i in (1, 2, 3)
    ]
    assert shares == [33, 33, 34]
    with pytest.raises(UserError, match=r"search\.shard: 1/101 selects no questions"):
        count_work(config.from_dict({**data, "search": {"shard": "1/101"}}))
    # Of a task whose size is a guess, every slice has a question.
    guess = {"task": {"name": "strategyqa"}, "search": {"shard": "1/5000"}}
    assert count_work(config.from_dict(guess)).train_questions == 1


@pytest.mark.parametrize(
    ("fields", "per_prefix"),
    [
        ({"pairs": "random"}, 1),
        ({"pairs": "random", "pairs_per_prefix": 3}, 3),
        ({"pairs": "best_worst", "pairs_per_prefix": 1000}, 6),
        ({"pairs": "all"}, 6),
    ],
)
def test_pairs_of_a_prefix_are_at_most_half_of_its_siblings_times_the_other(fields, per_prefix):
    roles = [{"name": "a", "template": "{question}", "branch": 5, "train": "dpo"}]
    task = {"name": "gsm8k", "num_train": 100}
    found = count_work(
        config.from_dict({"task": task, "pipeline": {"roles": roles}, "data": fields})
    )
    assert found.roles[0].examples == {"dpo": 50 * per_prefix}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
    ],
)
def test_shipped_structures_have_the_published_number_of_parameters(name, parameters):
    from malt_jax.models.weights import abstract_params

    spec, source = find_spec(name)
    _, params = abstract_params(spec, "float32", stacked=True)
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters
    assert "shipped" in source


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_fine_tuning_holds_what_training_holds(small, dtype):
    """float32 weights, gradients and AdamW's two moments: 16 bytes per parameter, and the base."""
    settings, spec = small
    full = config.from_dict(to_dict(settings), ["--train.full", "--model.dtype", dtype])
    run = lay_out(full, spec, Target("one", CHIPS["h100"], 1, None))
    parameters, element = count_parameters(spec), jnp.dtype(dtype).itemsize
    assert run.weights == element * parameters
    programs = {program.name: program for program in run.programs}
    assert programs["sft step"].resident == element * parameters
    assert programs["dpo step"].resident == (element + 4) * parameters  # and its SFT reference
    model = load_model(settings.model.path, dtype=dtype)
    phases = {"sft": (full.train.sft, model.params), "dpo": (full.train.dpo, model.params)}
    for name, (phase, start) in phases.items():
        _, (state, frozen, _) = programs[f"{name} step"].build(spec.num_layers)
        real = init_state(make_program(model.graph, dtype, phase, 0.0, "gpu"), start)
        assert frozen is None
        assert device_bytes(state) == sum(x.nbytes for x in jax.tree.leaves(real))
        assert 0 <= device_bytes(state) - 16 * parameters < 100  # and a few scalars


def test_adapters_are_trained_over_the_base_model_as_it_is(small):
    settings, spec = small
    settings = config.from_dict(to_dict(settings), ["--model.dtype", "bfloat16"])
    run = lay_out(settings, spec, Target("one", CHIPS["h100"], 1, None))
    step = next(program for program in run.programs if program.name == "sft step")
    _, (state, frozen, _) = step.build(spec.num_layers)
    adapter = init_adapter(spec, settings.train.lora, jax.random.key(0))
    assert device_bytes(frozen) == 2 * count_parameters(spec) and step.resident == 0
    parameters = sum(x.size for x in jax.tree.leaves(adapter))
    assert 0 <= device_bytes(state) - 16 * parameters < 100


def test_a_rounded_copy_of_the_sampler_lies_beside_the_model_in_all_programs(small):
    settings, spec = small
    target = Target("one", CHIPS["h100"], 1, None)
    held = []
    for weights in ("auto", "int8"):
        flags = ["--model.dtype", "float32", "--sampler.weights", weights]
        changed = config.from_dict(to_dict(settings), flags)
        programs = lay_out(changed, spec, target).programs
        held.append(
            {p.name: p.resident + device_bytes(p.build(spec.num_layers)[1]) for p in programs}
        )
    model = load_model(settings.model.path, dtype="float32")
    # Tables and norms are the model's own arrays.
    own = {id(x) for x in jax.tree.leaves(model.params)}
    read = jax.tree.leaves(Sampler(model, changed.sampler).params)
    more = sum(x.nbytes for x in read if id(x) not in own)
    assert more < sum(x.nbytes for x in read)
    assert {name: held[1][name] - held[0][name] for name in held[0]} == dict.fromkeys(held[0], more)


@pytest.mark.parametrize("name", ["v5p", "v9:2x2", "v5p:0x2", "v5p:axb"])
def test_a_name_that_is_no_topology_is_refused(name):
    with pytest.raises(UserError, match="--topology"):
        find_target(name)


def test_a_plan_without_a_compiler_is_plain_data_and_fits_a_large_chip(small):
    settings, spec = small
    plan = plan_run(settings, spec, Target("h100:1", CHIPS["h100"], 1, None))
    assert json.loads(json.dumps(plan)) == plan
    assert plan["fits"] and all(program["fits"] for program in plan["programs"])
    assert not plan["compiled"]
    names = [program["name"] for program in plan["programs"]]
    sampling = ["copy", "prefill 8", "prefill 32", "decode"]
    assert names == [*sampling, "sft step", "dpo step", "reference"]
    assert {stage["name"] for stage in plan["stages"]} == {"search", "training", "evaluation"}


def test_the_plan_has_the_rows_the_sampler_would_take(small):
    settings, spec = small
    target = Target("cpu", Chip("cpu", "cpu", None, None, None), 1, None)
    for flags in ([], ["--sampler.memory-gb", "0.001"], ["--sampler.rows", "6"]):
        changed = config.from_dict(to_dict(settings), flags)
        setting = lay_out(changed, spec, target)
        sampler = Sampler(load_model(settings.model.path), changed.sampler)
        last = setting.work.roles[-1]
        branch = changed.pipeline.roles[-1].branch
        shapes = sampler.shapes(setting.sizes.shapes.prefix_tokens, last.longest, branch)
        assert setting.sizes.shapes == first_shape(shapes, last.nodes // sampler.streams)
        assert setting.sizes.prefill == prefill_shape(changed.sampler, "cpu", 1)


def test_what_does_not_fit_names_a_setting_with_which_it_does(small, monkeypatch):
    settings, spec = small
    rows = ["--sampler.memory-gb", "1", "--sampler.rows", "4096"]
    settings = config.from_dict({**tiny.SMALL, "model": {"path": settings.model.path}}, rows)

    def target(memory: int) -> Target:
        return Target("tiny", replace(CHIPS["h100"], memory=memory), 1, None)

    def decode(settings, memory: int) -> dict:
        run = lay_out(settings, spec, target(memory))
        return measured(run, [p for p in run.programs if p.name == "decode"], False)[0]

    def only_decode(run, program, *rest):  # the training steps do not fit either
        return instead(run, program, *rest) if program.name == "decode" else ""

    instead = plan_module._instead
    monkeypatch.setattr(plan_module, "_instead", only_decode)
    enough = decode(settings, 1 << 40)["total_bytes"]
    plan = plan_run(settings, spec, target(enough - 1))
    refused = next(program for program in plan["programs"] if program["name"] == "decode")
    assert not refused["fits"] and refused["instead"] == "sampler.rows: 64"
    assert plan["fits"] is False
    settings = config.from_dict(to_dict(settings), ["--sampler.rows", "64"])
    assert decode(settings, enough - 1)["fits"]


def test_the_tables_of_a_plan_show_its_programs_and_stages(small, capsys):
    settings, spec = small
    plan = plan_run(settings, spec, Target("h100:1", CHIPS["h100"], 1, None))
    for table in tables(plan):
        print_table(table)
    shown = capsys.readouterr().out
    for name in ("sft step", "reference", "decode", "search", "evaluation", "The run fits 80 GiB"):
        assert name in shown
    assert "collectives" not in shown  # one chip has none
    for program in plan["programs"]:
        program["seconds"] = None
    plan["stages"] = []
    for table in tables(plan):
        print_table(table)
    assert "malt bench sampler" in capsys.readouterr().out


def test_a_plan_says_its_slice_and_that_ablations_are_not_in_it(small, capsys):
    settings, spec = small
    data = to_dict(settings) | {"ablations": [{"name": "a", "set": {"search.backup": "max"}}]}
    made = config.from_dict(data, ["--search.shard", "1/2", "--task.num-train", "10"])
    plan = plan_run(made, spec, Target("h100:1", CHIPS["h100"], 1, None))
    for table in tables(plan):
        print_table(table)
    shown = capsys.readouterr().out
    assert "search: 5 questions (slice 1/2 of them)" in shown
    assert "not counted: 1 ablation, each trained and evaluated" in shown


def test_hours_are_executions_times_seconds(small):
    settings, spec = small
    rounds = config.from_dict(to_dict(settings), ["--rounds", "3"])
    run = lay_out(settings, spec, Target("one", CHIPS["h100"], 1, None))
    once, thrice = (executions(s, run.work, run.sizes) for s in (settings, rounds))
    for stage in ("search", "training"):
        assert thrice[stage] == {name: 3 * count for name, count in once[stage].items()}
    assert thrice["evaluation"] == once["evaluation"]
    programs = [{"name": p.name, "seconds": 2.0} for p in run.programs]
    for stage in stages(settings, run.work, run.sizes, programs, 4):
        assert stage["hours"] == pytest.approx(sum(once[stage["name"]].values()) * 2 / 3600)
        assert stage["chip_hours"] == 4 * stage["hours"]
    unknown = [*programs[1:], {"name": programs[0]["name"], "seconds": None}]
    assert stages(settings, run.work, run.sizes, unknown, 4) == []


def test_a_role_without_examples_is_charged_no_training(small):
    settings, spec = small
    fixed = config.from_dict(to_dict(settings), ["--train.dpo.loop.steps", "3"])
    run = lay_out(fixed, spec, Target("one", CHIPS["h100"], 1, None))

    def training(examples: int) -> dict[str, float]:
        first, *others = (replace(role, examples={}) for role in run.work.roles)
        roles = (replace(first, examples={"dpo": examples}), *others)
        return executions(fixed, replace(run.work, roles=roles), run.sizes)["training"]

    none, many = training(0), training(1000 * fixed.train.dpo.batch_size)
    assert none["dpo step"] == none["reference"] == 0
    # The run keeps only the examples that its three steps reach, and scores no others.
    assert many["dpo step"] == many["reference"] > 0


def test_roles_are_charged_their_own_steps_and_planned_for_the_largest(small):
    settings, spec = small
    one = Target("one", CHIPS["h100"], 1, None)

    def with_verifier(dpo: dict) -> Config:
        made = to_dict(settings)
        made["pipeline"]["roles"][1]["training"] = {"dpo": dpo}
        return config.from_dict(made)

    def spent(settings: Config) -> float:
        run = lay_out(settings, spec, one)
        roles = tuple(
            replace(role, examples={"dpo": 320} if role.name == "verifier" else {})
            for role in run.work.roles
        )
        counts = executions(settings, replace(run.work, roles=roles), run.sizes)["training"]
        shape = largest(run.sizes.steps["dpo"])
        return counts["dpo step"] * shape.rows * shape.time

    for size in (2, 64):  # the refiner's batch has 8 pairs
        changed = with_verifier({"batch_size": size})
        all_roles = config.from_dict(to_dict(changed), ["--train.dpo.batch_size", str(size)])
        assert spent(changed) == spent(all_roles)
    # A batch of the same size takes more memory with longer rows, and with more kept of them.
    for loop in ({"remat": "none"}, {"row_length": 4096}):
        run = lay_out(with_verifier({"loop": loop}), spec, one)
        assert vars(run.config.train.dpo.loop).items() >= loop.items()
    less = lay_out(with_verifier({"batch_size": 9, "loop": {"remat": "full"}}), spec, one)
    assert less.config.train.dpo == settings.train.dpo


def test_needs_grow_with_full_fine_tuning_and_shrink_without_merged_models(small):
    settings, spec = small
    changed = [config.from_dict(to_dict(settings), f) for f in
               ([], ["--train.full"], ["--export.merged", "false"])]  # fmt: skip
    plain, full, adapters = (count_needs(c, spec, ("sampling", "sft", "dpo")) for c in changed)
    assert full.memory > plain.memory and full.disk > plain.disk
    parameters = count_parameters(spec)
    assert plain.disk - adapters.disk == len(settings.pipeline.roles) * 4 * parameters
    # Weights, moments and gradient, the base, and the three copies that an update makes.
    assert 32 * parameters <= count_needs(changed[1], spec, ("sft",)).memory < 34 * parameters


def test_programs_of_a_cpu_are_compiled_whole(deeper):
    settings, spec = deeper
    target = Target("cpu", CHIPS["h100"], 1, jax.devices("cpu")[:1])
    plan = plan_run(settings, spec, target)
    assert all(p["compiled_at_layers"] == [spec.num_layers] for p in plan["programs"])
    found = {p["name"]: p for p in plan["programs"]}
    assert found["decode"]["temporaries"] > 0
    # XLA does not say how much memory its code for a CPU takes: it is estimated by instructions.
    assert found["sft step"]["code"] > found["reference"]["code"] > 0


@pytest.mark.parametrize(("mixture", "platform", "workers"), [
    (object(), "tpu", 1), (object(), "gpu", 2), (None, "tpu", 2)])  # fmt: skip
def test_programs_of_a_mixture_are_compiled_for_a_tpu_one_at_a_time(
    monkeypatch, mixture, platform, workers
):
    """libtpu 0.0.42 dies where two training steps of a mixture are compiled side by side."""
    from malt_jax.planning import compiler

    pools = []

    def pool(size: int) -> ThreadPoolExecutor:
        pools.append(size)
        return ThreadPoolExecutor(size)

    monkeypatch.setattr(compiler, "ThreadPoolExecutor", pool)
    monkeypatch.setattr(compiler, "measure", lambda program, *_, **__: {"flops": program.flops})
    monkeypatch.setattr(compiler, "_platform", lambda _: platform)
    monkeypatch.setattr(compiler.gpus, "known_to_jax", nullcontext)
    monkeypatch.setattr(compiler.os, "cpu_count", lambda: 2)
    programs = [SimpleNamespace(name=f"program {number}", flops=number) for number in range(3)]
    found = compiler.measure_all(programs, SimpleNamespace(mixture=mixture), None, 1)
    assert pools == [workers] and [one["flops"] for one in found] == [0, 1, 2]


def test_a_deep_model_is_stacked_and_its_training_scanned_in_runs_and_plans(tmp_path, small):
    settings, _ = small
    model = load_model(tiny.write_model(tmp_path / "deep", layers=STACKED_FROM, width=16))
    spec = model.spec
    assert spec.stacks_layers and not spec.first_layers(STACKED_FROM - 1).stacks_layers
    run = lay_out(settings, spec, Target("one", CHIPS["h100"], 1, None))
    step = next(program for program in run.programs if program.name == "sft step")
    function, (state, frozen, batch) = step.build(spec.num_layers)
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)  # noqa: E731
    assert shapes(frozen) == shapes(model.params)
    adapter = jax.eval_shape(lambda: initial_weights(model, settings.train.lora))
    assert shapes(state.trainable) == shapes(adapter)
    traced = str(jax.make_jaxpr(function)(state, frozen, batch))
    assert step.scanned and f"length={STACKED_FROM}" in traced
    assert traced.count("dot_general") < 20 * STACKED_FROM


@LIBTPU
def test_two_depths_tell_arguments_and_operations_of_all_layers_on_a_tpu(deeper):
    settings, spec = deeper
    setting = lay_out(settings, spec, find_target("v5e:2x2"))
    program = next(p for p in setting.programs if p.name == "decode")
    near, whole = (measure(program, spec, setting.mesh, 4, whole=whole) for whole in (False, True))
    assert near["compiled_at_layers"] == [2, 3] and whole["compiled_at_layers"] == [4]
    assert near["arguments"] == whole["arguments"]
    np.testing.assert_allclose(near["flops"], whole["flops"])


@pytest.mark.parametrize("message", [
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.",
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(20.50G) exceeds available HBM (15.75G).",
])  # fmt: skip
def test_a_program_larger_than_the_chip_is_a_figure_and_not_a_failure(monkeypatch, small, message):
    settings, spec = small

    def refuse(self, compiler_options=None):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    target = Target("cpu", CHIPS["v5e"], 1, jax.devices("cpu")[:1])
    setting = lay_out(settings, spec, target)
    figures = measure(setting.programs[0], spec, setting.mesh, 1, whole=True)
    # The first message counts the arguments, the second the temporaries alone.
    stated = total_bytes(figures) - figures["resident"]
    stated -= figures["arguments"] if "temporaries" in message else 0
    assert stated == round(20.5 * 2**30) and figures["refused"]


@LIBTPU
def test_a_tpu_slice_is_described_without_a_tpu():
    target = find_target("v5e:2x2")
    assert target.count == len(target.devices) == 4
    assert target.devices[0].platform == "tpu"


def test_headers_of_recipes_are_the_kept_plans():
    sys.path.insert(0, str(ROOT / "scripts"))
    recipes = import_module("recipe_plans")
    kept = sorted(recipes.KEPT.glob("*.json"))
    assert kept
    for path in kept:
        text = recipes.recipe_of(path).read_text()
        plan = json.loads(path.read_text())
        assert recipes.with_header(text, plan) == text, f"run `python {recipes.__file__}`"
        assert "# The plan of" in text and plan["fits"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/results/plans").glob("*.json")), ids=lambda path: path.stem
)
def test_a_recipe_whose_compiled_plan_fits_is_not_refused_by_the_estimate_of_a_run(path):
    plan = json.loads(path.read_text())
    recipe = config.load(str(ROOT / f"configs/{path.stem}.yaml"))
    spec, _ = find_spec(recipe.model.path, recipe.model.revision)
    target = find_target(plan["target"]["name"], compiles=False)
    needs = count_needs(recipe, spec, ("sampling", "sft", "dpo"), target=target)
    assert plan["fits"] and needs.memory <= plan["target"]["chip_bytes"]


def test_published_splits_bound_the_questions_of_a_plan_and_guesses_are_named():
    def work(**task) -> tuple[int, int, bool]:
        found = count_work(config.from_dict({"task": task}))
        return found.train_questions, found.eval_questions, found.guessed

    assert work(name="svamp") == (700, 300, False)
    assert work(name="gsm8k", num_eval=100_000, num_validation=2000) == (5473, 1319, False)
    assert work(name="gsm8k", num_train=9000, train_path="mine.jsonl")[0] == 9000
    assert work(name="strategyqa") == (1000, 200, True)


def test_a_program_that_the_compiler_refuses_does_not_fit(small, monkeypatch):
    """A v5e has 15.75 GiB for programs, of 16, so its compiler may refuse what seems to fit."""
    from malt_jax.planning import compiler

    def refused(*_):
        return {"arguments": 1, "temporaries": 1, "refused": True}

    run = lay_out(*small, Target("v5e:1", CHIPS["v5e"], 1, None))
    monkeypatch.setattr(compiler, "_at", refused)
    found = measured(run, run.programs[:1], whole=True)
    assert [figures["fits"] for figures in found] == [False]
