"""A mixture of experts is the weighted sum it says it is, however tokens are sorted and split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from closeness import assert_near
from malt_jax.config.lora import LoraConfig
from malt_jax.data.examples import SftExample
from malt_jax.errors import UserError
from malt_jax.export.role import export_role
from malt_jax.models import mxfp4
from malt_jax.models.decoder import Decoder, Layer
from malt_jax.models.experts import choose
from malt_jax.models.lora import LayerAdapter, init_adapter
from malt_jax.models.model import load_model
from malt_jax.models.spec import Mixture
from malt_jax.training import balance
from malt_jax.training.balance import expert_balance
from tiny_models import hf_model, save_checkpoint, save_tokenizer
from training_model import SPEC

HERE = Path(__file__).parent
MIXED = replace(SPEC, family="qwen3_moe", mixture=Mixture(6, 2, normalised=True), d_mlp=16)
BIASED = replace(
    MIXED,
    activation="clamped_swiglu",
    swiglu_limit=0.5,
    mixture=Mixture(6, 3, bias=True, normalised=True, layout="interleaved"),
)
TARGETS = ("q", "expert_gate", "expert_up", "expert_down")


def layer_and_pairs(spec):
    layer = Layer(spec, rngs=nnx.Rngs(0), dtype=jnp.float32)
    for name, value in nnx.to_flat_state(nnx.state(layer)):
        if name[-1] == "bias":  # zero at the start
            value[...] = jax.random.normal(jax.random.key(3), value[...].shape)
    adapter = init_adapter(spec, LoraConfig(rank=2, targets=TARGETS), jax.random.key(1))
    pairs = jax.tree.map(lambda x: x + 0.1, adapter.layers[0])
    return layer, pairs


def every_expert_on_every_token(layer, x, pairs, scale):
    """The same sum without sorting: all experts compute all tokens, most with weight 0."""
    spec = layer.spec
    logits = layer.router(x).reshape(-1, spec.mixture.experts)
    weights, chosen = choose(spec.mixture, logits)
    x = x.reshape(-1, spec.d_model)

    def project(name, x):
        linear, pair = getattr(layer, f"expert_{name}"), pairs[f"expert_{name}"]
        kernel = linear.kernel[...] + scale * jnp.einsum("eir,ero->eio", pair["a"], pair["b"])
        y = jnp.einsum("eni,eio->eno", x, kernel)
        return y if linear.bias is None else y + linear.bias[...][:, None]

    every = jnp.broadcast_to(x, (spec.mixture.experts, *x.shape))
    gate, up = project("gate", every), project("up", every)
    if spec.activation == "clamped_swiglu":
        gate, up = jnp.minimum(gate, 0.5), jnp.clip(up, -0.5, 0.5)
        hidden = gate * jax.nn.sigmoid(1.702 * gate) * (up + 1)
    else:
        hidden = jax.nn.silu(gate) * up
    share = jnp.einsum("nk,nke->ne", weights, jax.nn.one_hot(chosen, spec.mixture.experts))
    return jnp.einsum("ne,end->nd", share, project("down", hidden))


@pytest.mark.parametrize("spec", [MIXED, BIASED], ids=["silu", "biased and clamped"])
def test_output_and_gradients_are_those_of_every_expert_on_every_token(spec):
    layer, pairs = layer_and_pairs(spec)
    x = jax.random.normal(jax.random.key(2), (2, 7, spec.d_model))

    def ours(x, pairs):
        return layer._mlp(x, LayerAdapter(pairs, 0.5))[0].reshape(-1, spec.d_model)

    def plain(x, pairs):
        return every_expert_on_every_token(layer, x, pairs, 0.5)

    assert_near(ours(x, pairs), plain(x, pairs))
    slopes = [
        jax.grad(lambda x, p, f=f: jnp.sum(f(x, p) ** 2), argnums=(0, 1))(x, pairs)
        for f in (ours, plain)
    ]
    for found, expected in zip(*map(jax.tree.leaves, slopes), strict=True):
        assert_near(found, expected, 1e-4)


def test_the_load_counts_each_experts_share_of_the_tokens():
    decoder = Decoder(MIXED, rngs=nnx.Rngs(0))
    tokens = jnp.arange(20, dtype=jnp.int32).reshape(2, 10)
    load = decoder.expert_load(tokens)
    assert load.shape == (MIXED.num_layers, 6)
    np.testing.assert_allclose(load.sum(axis=1), 2.0, rtol=1e-6)
    # A router that says the same of every token sends all of them to two experts.
    decoder.layers[0].router.kernel[...] = jnp.zeros((MIXED.d_model, 6))
    np.testing.assert_array_equal(decoder.expert_load(tokens)[0], [1, 1, 0, 0, 0, 0])
    stacked = Decoder(MIXED, rngs=nnx.Rngs(0), stacked=True)
    assert stacked.expert_load(tokens).shape == (MIXED.num_layers, 6)


def test_training_reports_how_unevenly_the_experts_are_loaded(monkeypatch):
    decoder = Decoder(MIXED, rngs=nnx.Rngs(0))
    for layer in decoder.layers:  # all tokens go to the same two of six experts
        layer.router.kernel[...] = jnp.zeros((MIXED.d_model, 6))
    graph, params = nnx.split(decoder)
    model = SimpleNamespace(spec=MIXED, graph=graph, params=params)
    examples = [SftExample((1, 2, 3), tuple(range(4, 4 + n)), f"Q{n}") for n in (2, 5)]
    found = expert_balance(model, params, examples)
    np.testing.assert_allclose(found["expert_load_max"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(found["experts_unused"], 4 / 6, rtol=1e-6)
    dense = SimpleNamespace(spec=replace(MIXED, mixture=None))
    assert expert_balance(dense, params, examples) == {}
    # Other processes may hold parts of the loads, which `to_host` gathers.
    monkeypatch.setattr(balance, "to_host", np.ones_like)
    assert expert_balance(model, params, examples)["experts_unused"] == 0.0


def test_a_mesh_with_an_axis_of_experts_gives_what_one_device_gives(tmp_path):
    pytest.importorskip("torch", reason="the checkpoint is made by transformers with torch")
    hf_model("qwen3-moe", num_hidden_layers=1).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    done = subprocess.run(
        [sys.executable, HERE / "sharded_experts.py", tmp_path],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 2


def quantised(folder: Path) -> Path:
    """The gpt-oss checkpoint in `folder` with random MXFP4 experts in place of its own."""
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(0)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "experts.down_proj"))]:
        experts, d_in, d_out = tensors.pop(name).shape
        shape = (experts, d_out, d_in // 32, 16)
        tensors[name + "_blocks"] = rng.integers(0, 256, shape).astype(np.uint8)
        tensors[name + "_scales"] = rng.integers(119, 127, shape[:-1]).astype(np.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_mxfp4_is_dequantised_as_transformers_does_it(tmp_path):
    torch = pytest.importorskip("torch", reason="transformers dequantises with torch")
    from safetensors.numpy import load_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = quantised(save_checkpoint(tmp_path, "gpt-oss"))
    stored = load_file(folder / "model.safetensors")
    base = "model.layers.1.mlp.experts.gate_up_proj"
    blocks, scales = stored[base + "_blocks"], stored[base + "_scales"]
    expected = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
    expected = expected.float().numpy()  # [expert, in, out]
    found = mxfp4.dequantised(blocks, scales)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32).swapaxes(1, 2), expected)
    for stacked in (False, True):
        params = load_model(folder, stacked=stacked).params["layers"]
        layer = params if stacked else params[1]
        for i, name in enumerate(("expert_gate", "expert_up")):
            kernel = np.asarray(layer[name]["kernel"][...])
            kernel = kernel[1] if stacked else kernel
            np.testing.assert_array_equal(kernel, expected[..., i::2])


def test_blocks_without_their_scales_are_refused(tmp_path):
    pytest.importorskip("torch", reason="the checkpoint is made by transformers with torch")
    from safetensors.numpy import load_file, save_file

    folder = quantised(save_checkpoint(tmp_path, "gpt-oss"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.0.mlp.experts.down_proj_scales")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"down_proj_blocks .* are no MXFP4 tensor"):
        load_model(folder)


def test_adapters_on_the_experts_of_gpt_oss_export_merged_only(tmp_path):
    pytest.importorskip("torch", reason="the checkpoint is made by transformers with torch")
    from safetensors.numpy import load_file

    model = load_model(save_checkpoint(tmp_path / "base", "gpt-oss"))
    lora = LoraConfig(rank=2, targets=("q", "expert_up"))
    adapter = jax.tree.map(lambda x: x + 0.1, init_adapter(model.spec, lora, jax.random.key(0)))
    export_role(model, adapter, tmp_path / "out", lora=lora)
    assert not (tmp_path / "out" / "adapter").exists()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    before, after = (
        load_file(tmp_path / folder / "model.safetensors")[name] for folder in ("base", "out")
    )
    pair = adapter.layers[0]["expert_up"]
    change = lora.scale * np.einsum("eir,ero->eio", pair["a"], pair["b"])
    assert_near(after[..., 1::2] - before[..., 1::2], change, 1e-4)
    np.testing.assert_array_equal(after[..., ::2], before[..., ::2])
