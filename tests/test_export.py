"""What is exported is what was trained: transformers and PEFT give our logits."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from malt_jax.config.lora import LoraConfig
from malt_jax.config.pipeline import RoleConfig
from malt_jax.errors import UserError
from malt_jax.export.role import export_role
from malt_jax.models.lora import init_adapter
from malt_jax.models.model import load_model
from tiny_models import VOCAB, save_checkpoint

torch = pytest.importorskip("torch", reason="parity needs torch: pip install '.[test]'")
pytest.importorskip("peft", reason="parity needs peft: pip install '.[test]'")

TOKENS = np.random.default_rng(1).integers(0, VOCAB, (2, 24)).astype(np.int32)


def trained_adapter(spec, config: LoraConfig, stacked: bool):
    """An adapter as after training: neither factor is zero."""
    adapter = init_adapter(spec, config, jax.random.key(0), stacked=stacked)
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def our_logits(model, adapter) -> np.ndarray:
    tokens = jnp.asarray(TOKENS)
    decode = jax.jit(lambda p, a: nnx.merge(model.graph, p)(tokens, adapter=a))
    return np.asarray(decode(model.params, adapter))


def hf_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


def hf_load(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


CASES = [
    ("smollm2", False, LoraConfig(rank=4, alpha=8.0)),
    ("qwen2", True, LoraConfig(rank=3, alpha=5.0, targets=("q", "v"), rslora=True)),
    ("gemma3", True, LoraConfig(rank=2, alpha=4.0, targets=("o", "gate", "up", "down"))),
]


@pytest.mark.parametrize("family,stacked,lora", CASES)
def test_merged_model_and_adapter_on_its_base_give_our_logits(family, stacked, lora, tmp_path):
    from peft import PeftModel

    base = save_checkpoint(tmp_path / "base", family)
    model = load_model(base, stacked=stacked)
    adapter = trained_adapter(model.spec, lora, stacked)
    out = tmp_path / "export"
    export_role(model, adapter, out, lora=lora, card="# card", shard_bytes=20_000)

    ours = our_logits(model, adapter)
    assert np.abs(ours - our_logits(model, None)).max() > 0.1  # the adapter does something
    np.testing.assert_allclose(hf_logits(hf_load(out)), ours, atol=1e-4, rtol=0)
    peft = PeftModel.from_pretrained(hf_load(base), out / "adapter")
    np.testing.assert_allclose(hf_logits(peft), ours, atol=1e-4, rtol=0)
    # and our own loader takes its own export back, tokenizer included
    again = load_model(out)
    np.testing.assert_allclose(np.asarray(again(TOKENS)), ours, atol=1e-4, rtol=0)
    assert again.tokenizer.prompt_ids("hi") == model.tokenizer.prompt_ids("hi")
    assert again.tokenizer.end_ids == model.tokenizer.end_ids
    assert (out / "model.safetensors.index.json").is_file()
    assert (out / "README.md").read_text() == "# card"


def test_every_field_of_the_adapter_config_reads_back(tmp_path):
    from peft import PeftConfig

    base = save_checkpoint(tmp_path / "base", "smollm2")
    model = load_model(base)
    lora = LoraConfig(rank=4, alpha=8.0, targets=("q", "down"), rslora=True)
    adapter = trained_adapter(model.spec, lora, False)
    export_role(model, adapter, tmp_path / "out", lora=lora, merged=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter"]
    config = PeftConfig.from_pretrained(tmp_path / "out" / "adapter")
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, 8.0, True)
    assert config.target_modules == {"q_proj", "down_proj"}
    assert config.base_model_name_or_path == str(base)
    assert (config.peft_type, config.task_type, config.bias) == ("LORA", "CAUSAL_LM", "none")
    assert config.inference_mode


def test_the_adapter_meets_the_conditions_of_vllm(tmp_path):
    """The conditions of `vllm.lora.peft_helper.PEFTHelper` and of its names for tensors."""
    from safetensors.numpy import load_file

    model = load_model(save_checkpoint(tmp_path / "base", "qwen2"))
    lora = LoraConfig(rank=8, alpha=16.0)
    adapter = trained_adapter(model.spec, lora, False)
    export_role(model, adapter, tmp_path / "out", lora=lora, merged=False)
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert all(type(config[name]) is int for name in ("r", "lora_alpha"))
    assert config["bias"] == "none" and config["modules_to_save"] is None
    assert not config["use_dora"] and isinstance(config["target_modules"], list)
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    for name, value in tensors.items():
        first, second, *_, projection, side, last = name.split(".")
        assert (first, second, last) == ("base_model", "model", "weight")
        assert projection in config["target_modules"]
        assert value.shape[("lora_A", "lora_B").index(side)] == lora.rank


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights_are_rounded_once_to_the_dtype_the_model_ran_in(dtype, stacked, tmp_path):
    from safetensors.numpy import load_file

    model = load_model(save_checkpoint(tmp_path / "base", "qwen2"), dtype=dtype, stacked=stacked)
    lora = LoraConfig(rank=4, alpha=8.0)
    adapter = trained_adapter(model.spec, lora, stacked)
    export_role(model, adapter, tmp_path / "out", lora=lora)
    assert dtype_of(tmp_path / "out") == dtype
    base = load_file(tmp_path / "base" / "model.safetensors")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    factors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert base.keys() == merged.keys()
    changed = 0
    for name, value in base.items():
        exact = value.astype(dtype).astype(np.float64)
        prefix = "base_model.model." + name.removesuffix(".weight")
        if f"{prefix}.lora_A.weight" in factors:
            a, b = (factors[f"{prefix}.lora_{side}.weight"].astype(np.float64) for side in "AB")
            exact, changed = exact + lora.scale * b @ a, changed + 1
        assert merged[name].dtype == jnp.dtype(dtype)
        step = np.finfo(np.float32).eps if dtype == "float32" else 2.0**-8
        difference = np.abs(merged[name].astype(np.float64) - exact)
        assert np.all(difference <= step * np.abs(exact) + 1e-6), name
    assert changed == 7 * model.spec.num_layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_reads_back_bit_by_bit_whatever_the_model_ran_in(dtype, tmp_path):
    from peft import PeftModel

    base = save_checkpoint(tmp_path / "base", "smollm2")
    model = load_model(base, dtype=dtype)
    lora = LoraConfig(rank=4, alpha=8.0)
    adapter = trained_adapter(model.spec, lora, False)
    export_role(model, adapter, tmp_path / "out", lora=lora, merged=False)
    peft = PeftModel.from_pretrained(hf_load(base), tmp_path / "out" / "adapter")
    weights = {name: value.numpy() for name, value in peft.state_dict().items()}
    for i, layer in enumerate(adapter.layers):
        prefix = f"base_model.model.model.layers.{i}.mlp.down_proj"
        for side, name in (("a", "lora_A"), ("b", "lora_B")):
            ours = np.asarray(layer["down"][side])
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(weights[f"{prefix}.{name}.default.weight"], ours.T)
    # Eight bits of mantissa through four layers, against logits of this size.
    ours, theirs = our_logits(model, adapter), hf_logits(peft)
    atol = 1e-4 if dtype == "float32" else 0.05 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("trained_in", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fully_trained_weights_export_in_the_dtype_they_ran_in(
    dtype, trained_in, stacked, tmp_path
):
    """Full fine-tuning of a bfloat16 model trains float32 masters: they are rounded once."""
    base = save_checkpoint(tmp_path / "base", "mistral")
    model = load_model(base, dtype=dtype, stacked=stacked)
    trained = jax.tree.map(lambda x: (x * 1.001).astype(trained_in), model.params)
    export_role(model, None, tmp_path / "out", params=trained)
    assert dtype_of(tmp_path / "out") == dtype
    again = load_model(tmp_path / "out", dtype=dtype, stacked=stacked)
    expected = jax.tree.map(lambda x: x.astype(dtype), trained)
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), again.params, expected))
    assert hf_load(tmp_path / "out", dtype="auto").dtype == getattr(torch, dtype)


def dtype_of(folder) -> str:
    """What the config of an exported model says, under either version's name."""
    config = json.loads((folder / "config.json").read_text())
    return config.get("dtype") or config["torch_dtype"]


def test_an_export_never_replaces_a_folder_unasked(tmp_path):
    model = load_model(save_checkpoint(tmp_path / "base", "smollm2"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        export_role(model, None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    (tmp_path / "out" / "precious").unlink()
    export_role(model, None, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def endless_model(folder):
    """A tiny model that no token but the tokenizer's own ends, so that limits are met."""
    tiny.write_model(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "max_new_tokens": 3, "repetition_penalty": 9.0})
    )
    return load_model(folder)


def test_transformers_samples_an_exported_role_with_its_own_settings_alone(tmp_path):
    from transformers import GenerationConfig

    model = endless_model(tmp_path / "base")
    role = RoleConfig("refiner", temperature=0.7, top_p=0.9, max_new_tokens=40, stop=("\n",))
    export_role(model, None, tmp_path / "out", role=role)
    read = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (read.do_sample, read.temperature, read.top_p, read.top_k) == (True, 0.7, 0.9, 0)
    assert (read.max_new_tokens, read.stop_strings, read.eos_token_id) == (40, ["\n"], 2)
    assert read.repetition_penalty in (None, 1.0)
    assert load_model(tmp_path / "out").tokenizer.end_ids == model.tokenizer.end_ids
