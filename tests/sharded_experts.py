"""Run by test_models_experts.py in a process of its own with eight devices: logits, completions and
gradients of a mixture of experts on several meshes are those of one device."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType

from closeness import assert_near
from malt_jax.config.lora import LoraConfig
from malt_jax.config.sampler import SamplerConfig
from malt_jax.models.lora import adapter_shardings, init_adapter
from malt_jax.models.model import load_model
from malt_jax.sampling.request import Request, SamplingParams
from malt_jax.sampling.sampler import Sampler
from tiny_models import VOCAB

AXES = ("data", "fsdp", "expert", "tensor")
MESHES = [(1, 1, 4, 2), (1, 2, 2, 2)]
TARGETS = ("q", "v", "expert_gate", "expert_up", "expert_down")
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCAB, (8, 12)).astype(np.int32)


def forward(model, adapter):
    def loss(adapter):
        logits = nnx.merge(model.graph, model.params)(jnp.asarray(TOKENS), adapter=adapter)
        return jnp.mean(jax.nn.log_softmax(logits)[..., 5]), logits

    (_, logits), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)
    return np.asarray(logits), jax.tree.map(np.asarray, slope)


def sampled(model, mesh):
    keys = np.full((1, 2), 7, np.uint32)
    requests = [Request(tuple(map(int, row)), keys) for row in TOKENS]
    config = SamplerConfig(rows=8, prefix_buckets=(16,), new_token_buckets=(8,))
    params = SamplingParams(temperature=1.0, max_new_tokens=8)
    groups = Sampler(model, config, mesh=mesh).sample(requests, params)
    return [completion.tokens for group in groups for completion in group]


def main(folder: str) -> None:
    one = load_model(folder)
    adapter = init_adapter(one.spec, LoraConfig(rank=2, targets=TARGETS), jax.random.key(0))
    adapter = jax.tree.map(lambda x: x + 0.05, adapter)
    logits, slope = forward(one, adapter)
    completions = sampled(one, None)
    for shape in MESHES:
        mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        model = load_model(folder, mesh=mesh)
        kernel = model.params["layers"][0]["expert_gate"]["kernel"][...]
        held = kernel.addressable_shards[0].data.shape
        assert held == (8 // shape[2], 32 // shape[1], 24 // shape[3]), held
        placed = jax.device_put(adapter, adapter_shardings(one.spec, adapter, mesh))
        with jax.set_mesh(mesh):
            split_logits, split_slope = forward(model, placed)
        assert_near(split_logits, logits)
        jax.tree.map(lambda a, b: assert_near(a, b, 1e-4), split_slope, slope)
        if shape == MESHES[-1]:  # compiling for eight devices takes a while
            assert sampled(model, mesh) == completions
        print("same", shape)


if __name__ == "__main__":
    main(sys.argv[1])
