"""PEFT adapters whose modules differ in rank or scale, and those of experts in one array."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from closeness import assert_near
from malt_jax.config.lora import LoraConfig
from malt_jax.errors import UserError
from malt_jax.export.peft import write_peft
from malt_jax.models.adapters import load_adapter, other_base
from malt_jax.models.lora import init_adapter
from malt_jax.models.model import load_model
from tiny_models import save_checkpoint

TOKENS = np.arange(40, dtype=np.int32).reshape(2, 20)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Models by family, and their folders."""
    pytest.importorskip("torch", reason="parity needs torch: pip install '.[test]'")
    pytest.importorskip("peft", reason="parity needs peft: pip install '.[test]'")
    made = {}

    def base(family: str):
        if family not in made:
            folder = save_checkpoint(tmp_path_factory.mktemp(family), family)
            made[family] = folder, load_model(folder)
        return made[family]

    return base


def logits(model, adapter) -> np.ndarray:
    adapter = jax.tree.map(jnp.asarray, adapter)
    return np.asarray(nnx.merge(model.graph, model.params)(jnp.asarray(TOKENS), adapter=adapter))


def peft_logits(base, folder, older: bool = False, **config) -> np.ndarray:
    """Those of a random adapter that PEFT makes, and saves in `folder`.

    `older`: as its versions did that took an expert's outputs for its inputs.
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    experts = [layer.mlp.experts for layer in theirs.model.layers] if older else []
    for one in experts:
        one.is_transposed = True
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**config))
    for one in experts:
        one.is_transposed = False
    torch.manual_seed(1)
    for name, value in theirs.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.2)
    theirs.save_pretrained(folder)
    with torch.no_grad():
        return theirs(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


PATTERNS = {
    "smaller": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}},
    "larger": {"rank_pattern": {"down_proj": 7}},
    "alphas": {"alpha_pattern": {"layers.1.self_attn.q_proj": 3, "q_proj": 5}},
    "of one layer": {"rank_pattern": {"^model.layers.2.mlp.down_proj": 1}, "use_rslora": True},
}


@pytest.mark.parametrize("case", PATTERNS)
@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_modules_of_other_ranks_and_scales_give_pefts_logits(case, family, bases, tmp_path):
    folder, model = bases(family)
    settings = {"r": 4, "lora_alpha": 6, **PATTERNS[case]}
    targets = ["q_proj", "qkv_proj", "down_proj"]
    renamed = {
        key: {name.replace("q_proj", "qkv_proj"): x for name, x in value.items()}
        if family == "phi3" and isinstance(value, dict)
        else value
        for key, value in settings.items()
    }
    expected = peft_logits(folder, tmp_path, target_modules=targets, **renamed)
    adapter, lora = load_adapter(tmp_path, model.spec)
    assert lora.rank == (7 if case == "larger" else 4) and adapter.scale == lora.scale
    assert_near(logits(model, adapter), expected, 2e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank_pattern": {"(a+)+q_proj": 2}}, r"holds '\(a\+\)\+q_proj': expected names"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj = 0"),
        ({"rank_pattern": {"q_proj": True}}, r"rank_pattern\.q_proj"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern = .*expected an object"),
        ({"alpha_pattern": {"q_proj": "8"}}, r"alpha_pattern\.q_proj"),
        ({"rank_pattern": {"q_proj": 5}}, "q_proj.lora_A.* rank_pattern .* rank 5"),
    ],
)
def test_patterns_that_are_wrong_are_refused_in_one_sentence(change, named, bases, tmp_path):
    _, model = bases("qwen2")
    lora = LoraConfig(rank=4, targets=("q",))
    adapter = init_adapter(model.spec, lora, jax.random.key(0))
    write_peft(tmp_path, model.spec, adapter, lora, "base", None)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=named) as caught:
        load_adapter(tmp_path, model.spec)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
FUSED = {
    "mixtral": ("mixtral", {"target_parameters": EXPERTS}),
    "one array": ("mixtral", {"target_parameters": EXPERTS[1:]}),
    "other ranks": (
        "mixtral",
        {
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.gate_up_proj": 3},
            "alpha_pattern": {r".*\.down_proj": 9},
        },
    ),
    "some layers": (
        "qwen3-moe",
        {"target_parameters": [f"{layer}.{name}" for layer in (1, 3) for name in EXPERTS]},
    ),
    "olmoe": ("olmoe", {"target_parameters": EXPERTS}),
    "gpt-oss": ("gpt-oss", {"target_parameters": EXPERTS}),
}


@pytest.mark.parametrize("case", FUSED)
def test_adapters_of_all_experts_in_one_array_give_pefts_logits(case, bases, tmp_path):
    family, settings = FUSED[case]
    folder, model = bases(family)
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], **settings}
    expected = peft_logits(folder, tmp_path, **config)
    assert any("mlp.experts.lora_A" in x for x in load_file(tmp_path / "adapter_model.safetensors"))
    adapter, lora = load_adapter(tmp_path, model.spec)
    assert lora.rank == (3 if case == "other ranks" else 2)
    assert len(lora.targets) == (2 if case == "one array" else 4)
    assert_near(logits(model, adapter), expected, 2e-4)
    assert np.abs(logits(model, None) - expected).max() > 1e-2


def test_an_older_peft_that_took_outputs_for_inputs_is_read_too(bases, tmp_path):
    folder, model = bases("mixtral")
    expected = peft_logits(
        folder, tmp_path, older=True, r=2, target_modules=[], target_parameters=EXPERTS
    )
    stored = load_file(tmp_path / "adapter_model.safetensors")
    widths = {value.shape[1] for name, value in stored.items() if "lora_A" in name}
    assert widths == {2 * model.spec.d_mlp, model.spec.d_model}
    adapter, _ = load_adapter(tmp_path, model.spec)
    assert_near(logits(model, adapter), expected, 2e-4)


def test_an_export_that_peft_has_saved_again_is_read_at_its_own_rank(bases, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, model = bases("mixtral")
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q", "expert_gate", "expert_up", "expert_down"))
    drawn = init_adapter(model.spec, lora, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 64))
    drawn = jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), drawn)
    write_peft(tmp_path / "own", model.spec, drawn, lora, str(folder), None)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), tmp_path / "own", is_trainable=True
    )
    theirs.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["rank_pattern"]
    adapter, read = load_adapter(tmp_path / "again", model.spec)
    assert (read.rank, read.scale, set(read.targets)) == (2, 2.0, set(lora.targets))
    assert_near(logits(model, adapter), logits(model, drawn), 2e-4)


def test_fused_adapters_that_do_not_fit_say_what_they_are(bases, tmp_path):
    folder, model = bases("mixtral")
    peft_logits(folder, tmp_path / "a", r=2, target_modules=[], target_parameters=EXPERTS)
    path = tmp_path / "a" / "adapter_model.safetensors"
    stored = load_file(path)
    name = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    for changed in (
        stored | {name: np.ones((7, 5), np.float32)},
        stored | {name: np.ones((8, 5), np.float32)},
        {key: value for key, value in stored.items() if key != name.replace("lora_A", "lora_B")},
    ):
        save_file(changed, path)
        with pytest.raises(UserError, match=r"fused layout.*merge them into the base"):
            load_adapter(tmp_path / "a", model.spec)
    # What stands on a router is no expert's.
    peft_logits(folder, tmp_path / "b", r=2, target_modules=[], target_parameters=["gate.weight"])
    with pytest.raises(UserError, match="a router must be merged"):
        load_adapter(tmp_path / "b", model.spec)


def test_widths_that_do_not_tell_inputs_from_outputs_need_a_later_peft(bases, tmp_path):
    _, model = bases("mixtral")
    square = replace(model.spec, d_mlp=model.spec.d_model // 2)
    shapes = {"lora_A": (8, square.d_model), "lora_B": (square.d_model, 8)}
    prefix = "base_model.model.model.layers.0.mlp.experts."
    tensors = {
        f"{prefix}{side}.weight": np.ones(shape, np.float32) for side, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(config | {"peft_version": "0.21.2"}))
    assert load_adapter(tmp_path, square)[1].targets == ("expert_gate", "expert_up")
    for older in ({"peft_version": "0.18.0"}, {}):
        path.write_text(json.dumps(config | older))
        with pytest.raises(UserError, match="which of its sides are inputs"):
            load_adapter(tmp_path, square)


def test_an_adapter_of_another_model_is_named_in_a_warning(tmp_path, monkeypatch):
    def note(named, base: str) -> str | None:
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": named})
        )
        return other_base(tmp_path, base)

    found = note("meta/other-model", "meta/a-model")
    assert found is not None and "meta/other-model" in found and "meta/a-model" in found
    assert note("meta/A-Model", "copies/a-model") is None
    assert note("/home/one/model", "meta/a-model") is None
    assert note("meta/other-model", "runs/first/base") is None
    assert note(None, "meta/a-model") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "base").mkdir(parents=True)
    assert note("meta/other-model", "local/base") is None
    shutil.rmtree(tmp_path / "local")
