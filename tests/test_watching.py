"""Watching a run: model-flops utilisation, profiles, and the sampler against the trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest

import malt_jax as malt
import tiny
from malt_jax.config.pipeline import PipelineConfig
from malt_jax.data.examples import DpoExample, SftExample
from malt_jax.data.role_data import STAR
from malt_jax.models.model import load_model
from malt_jax.planning import utilisation
from malt_jax.planning.chips import CHIPS, chip_of, peak_flops
from malt_jax.progress import Progress
from malt_jax.stages import mismatch
from malt_jax.stages.mismatch import _spread
from malt_jax.stages.profile import Profiler
from malt_jax.tasks.base import Question
from malt_jax.training.mismatch import Mismatch, measure_mismatch, mismatch_warning

STATS = {"tokens_generated": 10, "prefill_tokens_computed": 100, "seconds": 2.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny.write_model(tmp_path_factory.mktemp("watching") / "model"))


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_the_name_that_jax_gives_it(kind, chip):
    assert chip_of(kind) is (CHIPS[chip] if chip else None)


def test_a_cpu_has_no_utilisation(model):
    assert peak_flops() is None
    assert utilisation.sampling_utilisation(model.spec, STATS) is None
    assert utilisation.training_utilisation(model.spec, [], full=False) is None


def test_utilisation_counts_what_the_model_needs(model, monkeypatch):
    monkeypatch.setattr(utilisation, "peak_flops", lambda: 1e6)
    spec = model.spec
    # Parameters of the products that a token goes through.
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layers = spec.num_layers * spec.d_model * (2 * heads + 2 * kv + 3 * spec.d_mlp)
    head = spec.d_model * spec.vocab
    shown = utilisation.sampling_utilisation(spec, STATS)
    assert shown == pytest.approx((2 * layers * 110 + 2 * head * 10) / 2.0 / 1e6)

    def example(prompt: tuple[int, ...]) -> SftExample:
        return SftExample(prompt, (1, 2), "Q", question_id="Q")

    alone, shared = (
        utilisation.training_utilisation(spec, examples, full=False)
        for examples in ([example((1, 2, 3))], [example((1, 2, 3))] * 2)
    )
    attention = 3 * 4 * spec.num_layers * heads * (3**2 / 2 + 3 * 2 + 2**2 / 2)
    expected = 2 * 2 * (layers * 5 + head * 2) + attention
    assert alone == pytest.approx(expected / 5 / 1e6)  # five useful tokens, at one per second
    assert alone > shared > alone / 2  # the prompt of both is computed once
    full = utilisation.training_utilisation(spec, [example((1, 2, 3))], full=True)
    assert full == pytest.approx(alone + 2 * (layers * 5 + head * 2) / 5 / 1e6)
    pair = DpoExample((1, 2, 3), (1, 2), (3, 4), chosen_node_id="a", question_id="Q")
    assert utilisation.training_utilisation(spec, [pair], full=False) == pytest.approx(shared)


def test_the_progress_line_shows_utilisation_where_it_is_known(capsys):
    stats = {"tokens_generated": 9, "seconds": 3.0, "padding_waste": 0.0}
    for known, part in ((0.412, "MFU 41.2%"), (None, "")):
        shown = Progress()
        shown.watch(lambda known=known: {**stats, "utilisation": known})
        shown.update("search/000", 1, 2)
        line = capsys.readouterr().err
        assert part in line and ("MFU" in line) == bool(part)


@pytest.fixture
def traces(monkeypatch):
    """What is traced, by the calls of JAX's profiler."""
    calls: list[str] = []
    fake = SimpleNamespace(
        start_trace=lambda folder: calls.append(f"start {Path(folder).name}"),
        stop_trace=lambda: calls.append("stop"),
    )
    monkeypatch.setattr(jax, "profiler", fake)
    return calls


def test_a_few_steps_are_traced_once_in_every_stage(traces, tmp_path):
    notes: list[str] = []
    profiler = Profiler(tmp_path, notes.append)
    for stage in ("a", "b"):
        with profiler.stage(stage):
            for step in range(9):
                traces.append(str(step))
                profiler.between_steps()
    one = ["0", "1", "2", "start {}", "3", "4", "5", "stop", "6", "7", "8"]
    assert traces == [call.format(stage) for stage in "ab" for call in one]
    assert notes == [f"profile of {stage}: {tmp_path / stage}" for stage in "ab"]


def test_a_trace_ends_with_the_last_step_or_with_an_error(traces, tmp_path):
    notes: list[str] = []
    profiler = Profiler(tmp_path, notes.append)
    with profiler.stage("a"):
        for step in range(4):
            profiler.between_steps(last=step == 3)
        assert traces == ["start a", "stop"]
    with pytest.raises(KeyError), profiler.stage("b"):
        for _ in range(4):
            profiler.between_steps()
        raise KeyError
    assert traces == ["start a", "stop", "start b", "stop"]
    with profiler.stage("c"):
        profiler.between_steps()
    assert notes[-1] == "no profile of c, because it has too few steps" and len(traces) == 4


def test_without_a_folder_nothing_is_traced(traces):
    profiler = Profiler(None, pytest.fail)
    with profiler.stage("a"):
        for _ in range(9):
            profiler.between_steps()
    profiler.between_steps()  # a sampler that is used outside of a stage
    assert not traces


def test_the_trainer_finds_the_samplers_log_probabilities_again(model):
    pipeline = PipelineConfig()
    pipeline = replace(
        pipeline, roles=tuple(replace(r, branch=2, max_new_tokens=6) for r in pipeline.roles)
    )
    forest = malt.search(
        model, [Question("Q1", "1+1=", "2"), Question("Q2", "2+2=", "4")], pipeline,
        task="arithmetic",
    )  # fmt: skip
    nodes = [node for tree in forest.trees for node in tree.nodes]
    found = measure_mismatch(model, None, nodes)
    assert found.completions == 28 and found.tokens == sum(len(n.token_ids) for n in nodes)
    assert 0 < found.mean <= found.largest < 1e-4
    assert mismatch_warning(found, model) is None
    # One token of one node is off: the largest difference shows it, and the mean hardly does.
    wrong = replace(nodes[5], logprobs=(nodes[5].logprobs[0] + 0.5, *nodes[5].logprobs[1:]))
    other = measure_mismatch(model, None, [*nodes[:5], wrong, *nodes[6:]])
    assert other.largest == pytest.approx(0.5, abs=1e-3)
    assert other.mean == pytest.approx(found.mean + 0.5 / found.tokens, abs=1e-5)
    assert "0.5 is above 0.001" in str(mismatch_warning(other, model))
    assert mismatch_warning(replace(found, largest=float("inf")), model)


def test_phases_that_learn_from_the_same_nodes_share_one_measurement(monkeypatch):
    """With the weights that sampled them, also after SFT has left others."""
    measure = Mock(return_value=Mismatch(0.1, 0.2, 3, 4))
    monkeypatch.setattr(mismatch, "measure_mismatch", measure)
    monkeypatch.setattr(mismatch, "mismatch_warning", Mock(return_value=None))
    monkeypatch.setattr(mismatch, "sealed_sample", lambda session, round, roles: [*roles])
    monkeypatch.setattr(mismatch, "latest", lambda session, round, name: f"{round:03d}/{name}")
    session, known = Mock(config=Mock(sharing="adapters")), {}
    session.pipeline.roles = [SimpleNamespace(name="generator")]
    for policy, phase in (("generator", "sft"), ("generator", "dpo"), ("refiner", "sft"),
                          (STAR, "sft")):  # fmt: skip
        mismatch.check_mismatch(session, 1, policy, phase, [policy], str.upper, known)
    assert [call.args[1:3] for call in measure.call_args_list] == [
        ("000/GENERATOR", ["generator"]),
        ("000/REFINER", ["refiner"]),
    ]
    logged = [call.args for call in session.metrics.series.call_args_list]
    assert logged[1] == ("mismatch", 1, "generator", "dpo") and len(logged) == 4


def test_what_is_measured_is_spread_evenly():
    assert _spread(range(100), 4) == [0, 25, 50, 75]
    assert _spread(range(3), 8) == [0, 1, 2] and _spread([], 8) == []
