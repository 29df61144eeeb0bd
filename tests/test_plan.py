"""What `malt plan` says before a run: counts, memory, communication, and whether it fits."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from malt_jax import config
from malt_jax.errors import UserError
from malt_jax.models.hf_config import read_spec
from malt_jax.planning.chips import CHIPS, Target, find_target
from malt_jax.planning.compiler import product_flops
from malt_jax.planning.hlo import collectives
from malt_jax.planning.plan import make_plan
from malt_jax.planning.specs import find_spec
from malt_jax.planning.work import Assumptions, count_work

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
    folder = tiny.write_model(tmp_path_factory.mktemp("plan") / "model", layers=4)
    return config.from_dict({**tiny.SMALL, "model": {"path": str(folder)}}), read_spec(folder)


def test_a_loops_collectives_count_as_often_as_it_runs():
    assert collectives(HLO) == {
        "all-reduce": {"count": 1, "bytes": 128},
        "all-gather": {"count": 10, "bytes": 5 * (128 + 64)},
    }


def test_products_in_scans_count_as_often_as_they_run():
    def f(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

    jaxpr = jax.make_jaxpr(f)(jnp.zeros((4, 4))).jaxpr
    assert product_flops(jaxpr) == 7 * 2 * 4**3


def test_the_published_tree_is_counted():
    work = count_work(config.from_dict({"task": {"name": "gsm8k"}}), Assumptions())
    assert work.train_questions == 7473
    assert work.calls == 39 * 7473
    assert [role.prefixes for role in work.roles] == [7473, 3 * 7473, 9 * 7473]
    assert work.roles[0].pairs == 0  # the generator learns by SFT alone


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
    ],
)
def test_shipped_structures_have_the_published_number_of_parameters(name, parameters):
    from malt_jax.models.weights import abstract_params

    spec, source = find_spec(name)
    _, params = abstract_params(spec, "float32", stacked=True)
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters
    assert "shipped" in source


@pytest.mark.parametrize("name", ["v5p", "v9:2x2", "v5p:0x2", "v5p:axb"])
def test_a_name_that_is_no_topology_is_refused(name):
    with pytest.raises(UserError, match="--topology"):
        find_target(name)


def test_a_plan_without_a_compiler_is_plain_data_and_fits_a_large_chip(small):
    settings, spec = small
    plan = make_plan(settings, spec, Target("h100:1", CHIPS["h100"], 1, None))
    assert json.loads(json.dumps(plan)) == plan
    assert plan["fits"] and not plan["compiled"]
    names = [program["name"] for program in plan["programs"]]
    assert names == ["prefill 1024", "prefill 4096", "decode", "sft step", "dpo step", "reference"]
    assert {stage["name"] for stage in plan["stages"]} == {"search", "training", "evaluation"}


def test_what_does_not_fit_names_what_would(small):
    settings, spec = small
    chip = replace(CHIPS["h100"], memory=1 << 20)
    settings = config.from_dict(
        {**tiny.SMALL, "model": {"path": settings.model.path}}, ["--sampler.memory-gb", "1"]
    )
    plan = make_plan(settings, spec, Target("tiny", chip, 1, None))
    assert not plan["fits"]
    decode = next(program for program in plan["programs"] if program["name"] == "decode")
    assert decode["instead"].startswith("sampler.slots: ")


def test_two_depths_tell_arguments_and_flops_of_all_layers(small):
    settings, spec = small
    device = jax.devices("cpu")[:1]
    target = Target("cpu", CHIPS["h100"], 1, device)
    near = make_plan(settings, spec, target)
    whole = make_plan(settings, spec, target, whole=True)
    for a, b in zip(near["programs"], whole["programs"], strict=True):
        assert a["arguments"] == b["arguments"]
        np.testing.assert_allclose(a["flops"], b["flops"])
    assert isinstance(near["mesh"]["why"], str)


@pytest.mark.xfail(strict=True, reason="temporaries are extrapolated badly on a CPU's programs")
def test_two_depths_tell_the_temporaries_of_all_layers(small):
    settings, spec = small
    target = Target("cpu", CHIPS["h100"], 1, jax.devices("cpu")[:1])
    near = make_plan(settings, spec, target)
    whole = make_plan(settings, spec, target, whole=True)
    for a, b in zip(near["programs"], whole["programs"], strict=True):
        assert abs(a["temporaries"] - b["temporaries"]) < 0.35 * b["total_bytes"]


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_tpu_slice_is_described_without_a_tpu():
    target = find_target("v5e:2x2")
    assert target.count == len(target.devices) == 4
    assert target.devices[0].platform == "tpu"
