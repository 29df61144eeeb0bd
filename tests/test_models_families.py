"""Every family as it is used: sampled, trained through LoRA, exported, against transformers and PEFT."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from closeness import assert_near
from malt_jax.config.lora import TARGETS, LoraConfig
from malt_jax.config.sampler import SamplerConfig
from malt_jax.export.role import export_role
from malt_jax.models.lora import init_adapter
from malt_jax.models.model import load_model
from malt_jax.models.peft_layout import from_peft, to_peft
from malt_jax.sampling.request import Request, SamplingParams
from malt_jax.sampling.sampler import Sampler
from tiny_models import FAMILIES, VOCAB, hf_model, save_tokenizer

torch = pytest.importorskip("torch", reason="parity needs torch: pip install '.[test]'")
pytest.importorskip("peft", reason="parity needs peft: pip install '.[test]'")

NEW = [name for name in FAMILIES if not name.startswith(("llama2", "llama-", "llama3", "qwen2"))]
RNG = np.random.default_rng(1)
TOKENS = RNG.integers(0, VOCAB, (2, 15)).astype(np.int32)
EXPERTS = ("q", "v", "expert_gate", "expert_up", "expert_down")


def lora_of(family: str) -> LoraConfig:
    experts = family in ("qwen3-moe", "mixtral", "olmoe")
    return LoraConfig(rank=2, alpha=8.0, targets=EXPERTS if experts else TARGETS)


def random_adapter(spec, config: LoraConfig):
    """An adapter as after training: neither factor is zero."""
    adapter = init_adapter(spec, config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def saved(family: str, folder):
    reference = hf_model(family)
    reference.save_pretrained(folder)
    save_tokenizer(folder)
    return reference


def in_torch(tokens: np.ndarray):
    return torch.tensor(tokens.astype(np.int64))


@pytest.mark.parametrize("family", [name for name in NEW if name != "phi4-mini"])
def test_64_greedy_tokens_are_those_of_transformers(family, tmp_path):
    reference = saved(family, tmp_path)
    model = load_model(tmp_path)
    keys = np.zeros((1, 2), np.uint32)
    requests = [Request(tuple(map(int, prompt)), keys) for prompt in TOKENS]
    sampler = Sampler(model, SamplerConfig(prefix_buckets=(16,), new_token_buckets=(64,)))
    drawn = sampler.sample(requests, SamplingParams(temperature=0.0, max_new_tokens=64))
    expected = reference.generate(
        in_torch(TOKENS), do_sample=False, max_new_tokens=64, min_new_tokens=64, eos_token_id=-1
    )
    for (completion,), tokens in zip(drawn, expected[:, TOKENS.shape[1] :], strict=True):
        assert completion.tokens == tuple(tokens.tolist())


@pytest.mark.parametrize("family", NEW)
def test_gradients_merged_export_and_adapter_are_those_of_transformers_and_peft(family, tmp_path):
    from peft import PeftModel
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    reference = saved(family, tmp_path / "base")
    model, lora = load_model(tmp_path / "base"), lora_of(family)
    adapter, tokens = random_adapter(model.spec, lora), jnp.asarray(TOKENS)

    def loss(adapter):
        logits = nnx.merge(model.graph, model.params)(tokens, adapter=adapter)
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1
        )
        return -jnp.mean(chosen), logits

    (_, ours), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)
    assert np.abs(np.asarray(ours) - np.asarray(model(TOKENS))).max() > 0.1
    export_role(model, adapter, tmp_path / "out", lora=lora)

    # 1. Merged: transformers' logits and our own, under the names of the published layout.
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        assert_near(merged(in_torch(TOKENS)).logits.numpy(), ours, 2e-4)
    assert_near(load_model(tmp_path / "out")(TOKENS), ours, 2e-4)
    names = load_file(tmp_path / "base" / "model.safetensors").keys()
    exported = load_file(tmp_path / "out" / "model.safetensors").keys()
    if model.spec.tower:
        names = {
            name.removeprefix("language_model.") for name in names if name.startswith("language_")
        }
        assert names <= exported | {"lm_head.weight"}
    else:
        assert names == exported

    # 2. The adapter over its base: logits, the loss' slope, and the way back.
    base = type(reference).from_pretrained(tmp_path / "base", dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter", is_trainable=True)
    result = peft(input_ids=in_torch(TOKENS), labels=in_torch(TOKENS))
    assert_near(result.logits.detach().numpy(), ours, 2e-4)
    result.loss.backward()
    slopes = {
        name.replace(".default", ""): p.grad.numpy()
        for name, p in peft.named_parameters()
        if p.grad is not None and "experts" not in name  # those have names of PEFT's own
    }
    dense = [{t: x for t, x in layer.items() if "expert" not in t} for layer in slope.layers]
    found = to_peft(model.spec, jax.tree.map(np.asarray, dense))
    mask = to_peft(model.spec, jax.tree.map(np.ones_like, dense))
    assert slopes.keys() == found.keys()
    for name, value in found.items():
        assert_near(value, slopes[name] * mask[name], 2e-3)
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    for back, layer in zip(from_peft(model.spec, tensors), adapter.layers, strict=True):
        assert back.keys() == layer.keys()
        for target, pair in layer.items():
            assert_near(back[target]["a"] @ back[target]["b"], pair["a"] @ pair["b"], 1e-5)


def test_long_rope_is_sampled_up_to_its_original_context(tmp_path):
    saved("phi4-mini", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 256
    assert load_model(tmp_path).spec.context == 16
