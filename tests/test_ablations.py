"""Variants as lines of a config: all kinds are planned, share what they can, are refused early."""

from __future__ import annotations

from pathlib import Path

import pytest

from malt_jax import cli
from malt_jax import config as config_module
from malt_jax.config import reading
from malt_jax.errors import UserError
from malt_jax.progress import Progress
from malt_jax.stages.session import Session
from malt_jax.stages.variants import planned, shared_stages

SHIPPED = Path(__file__).parents[1] / "configs" / "ablations_quickstart.yaml"


def plan(config: config_module.Config):
    return planned(Session(config, None, Progress(quiet=True)))


@pytest.fixture(scope="module")
def shipped():
    config = config_module.load(str(SHIPPED))
    systems, variants = plan(config)
    return config, systems, variants


def test_the_shipped_ablations_are_those_the_method_calls_for(shipped):
    config, _, variants = shipped
    configs = [config, *(variant.config for variant in variants)]

    def seen(field: str) -> set:
        return {dict(reading.leaves(reading.to_dict(c))).get(field) for c in configs}

    assert seen("search.backup") == {"mean", "max", "soft"}
    assert len(seen("search.threshold")) >= 3
    assert seen("sharing") == {"adapters", "shared"}
    assert seen("rounds") == {1, 2}
    assert seen("train.dpo.loss") == {"sigmoid", "ipo", "nll"}
    assert seen("train.dpo.label_smoothing") > {0.0}
    assert seen("train.dpo.length_normalised") == {False, True}
    assert seen("train.dpo.nll_weight") > {0.0}
    pipelines = [c.pipeline.roles for c in configs]
    assert {len(roles) for roles in pipelines} == {1, 2, 3, 5}
    widths = [{role.branch for role in roles} for roles in pipelines if len(roles) == 3]
    assert all({width} in widths for width in (1, 2, 3, 4))


def test_the_run_beside_them_is_the_quickstart(shipped):
    quickstart = reading.to_dict(config_module.load(str(SHIPPED.with_name("quickstart.yaml"))))
    ours = reading.to_dict(shipped[0])
    for free in ("ablations", "output_dir"):
        del ours[free], quickstart[free]
    assert ours == quickstart


def test_the_single_agent_has_draws_for_the_dearest_variant(shipped):
    _, systems, variants = shipped
    calls = {v.system.name: v.system.calls * max(v.system.votes) for v in variants}
    assert calls["malt-depth-5"] == 15
    assert systems[0].name == "sa" and systems[0].draws == max(calls.values())


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("ipo", "train/000/star/sft"),
        ("more-sft", "train/000/star/sft"),
        ("shared", "label/000"),
        ("long-sft", "label/000"),
        ("backup-max", "search/000"),
        ("rounds-2", "train/000/refiner/dpo"),
        ("branch-2", None),
        ("depth-5", None),
    ],
)
def test_a_variant_shares_every_stage_its_fields_cannot_affect(shipped, name, last):
    config, _, variants = shipped
    (variant,) = (v for v in variants if v.folder == name)
    stages = list(shared_stages(config, variant.config))
    assert (stages[-1] if stages else None) == last


def test_a_dry_run_names_every_variant_and_what_it_shares(shipped, capsys):
    assert cli.main(["run", "--config", str(SHIPPED), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for variant in shipped[2]:
        assert f"{variant.system.name}: {variant.system.label}; " in out
    assert "malt-ipo: MALT, train.dpo.loss=ipo; the run's own up to train/000/star/sft" in out


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("a", {"search.backups": "max"}, "search.backups: unknown field"),
        ("a", {"search.backup": "best"}, "search.backup: found 'best'"),
        ("a", {"pipeline.roles.7.branch": 2}, "'7' is not one of the 3 entries"),
        ("a", {"task.num_eval": 3}, "other questions"),
        ("a", {"train.dpo.loss": "nll", "train.dpo.label_smoothing": 0.1}, "nll takes neither"),
        ("generator", {"search.backup": "max"}, "the name 'malt-generator' appears twice"),
        ("a", {"search.backup": "mean"}, "it changes nothing"),
        ("a", {"search": {}}, "it changes nothing"),
        ("a", {"train": {"dpo": {"beta": 0.2}}}, "it changes nothing"),
        ("a", {"search": {"backup": "max"}, "search.backup": "soft"}, "appears twice"),
        ("a", {"sampler": {"cache_dir": "x"}}, "'sampler.cache_dir' cannot differ"),
        ("a", {"export": {"push_to_hub": "a/b"}}, "'export.push_to_hub' cannot differ"),
        ("a", {"sampler": {"cache-dir": "x"}}, "'sampler.cache_dir' cannot differ"),
    ],
)
def test_a_wrong_ablation_is_refused_before_any_work(name, change, words):
    data = {"task": {"name": "arithmetic"}, "ablations": [{"name": name, "set": change}]}
    with pytest.raises(UserError, match="ablations") as error:
        plan(config_module.from_dict(data))
    assert words in str(error.value)


def test_a_mapping_of_an_ablation_is_laid_over_the_run_and_named_by_its_fields():
    data = {
        "task": {"name": "arithmetic"},
        "search": {"threshold": 0.25},
        "train": {"dpo": {"label_smoothing": 0.1, "loop": {"max_length": 96}}},
        "ablations": [
            {"name": "a", "set": {"search": {"backup": "max"}, "train": {"dpo": {"beta": 0.7}}}},
            {"name": "b", "set": {"pipeline.roles.1.training": {"dpo.beta": 0.7}}},
        ],
    }
    _, (a, b) = plan(config_module.from_dict(data))
    search, dpo = a.config.search, a.config.train.dpo
    assert (search.backup, search.threshold) == ("max", 0.25)
    assert (dpo.beta, dpo.label_smoothing, dpo.loop.max_length) == (0.7, 0.1, 96)
    assert a.system.label == "MALT, search.backup=max, train.dpo.beta=0.7"
    assert b.config.training_of("verifier").dpo.beta == 0.7
    assert b.system.label == "MALT, pipeline.roles.1.training.dpo.beta=0.7"


def test_a_rule_that_the_run_has_already_is_no_variant():
    data = {"task": {"name": "arithmetic"}, "ablations": [{"name": "a", "rule": "both"}]}
    plan(config_module.from_dict(data))
    with pytest.raises(UserError, match=r"ablations\.a: it changes nothing"):
        plan(config_module.from_dict({**data, "data": {"positives": "both"}}))
