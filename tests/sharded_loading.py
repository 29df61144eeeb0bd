"""Run by test_models_sharding.py in a process of its own with eight devices: loads one checkpoint
over several meshes and says whether weights and logits are those of one device."""

from __future__ import annotations

import sys

import jax
import numpy as np
from jax.sharding import AxisType

from closeness import assert_near
from malt_jax.models.checkpoint import Checkpoint
from malt_jax.models.model import load_model
from tiny_models import VOCAB

MESHES = [{"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


def main(folder: str) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCAB, (8, 12)).astype(np.int32)
    one = load_model(folder)
    expected = np.asarray(one(tokens))
    whole = sum(x.nbytes for x in jax.tree.leaves(one.params))
    reads: list[int] = []
    read = Checkpoint.read
    Checkpoint.read = lambda *a: (lambda x: (reads.append(x.nbytes), x)[1])(read(*a))
    for shape in MESHES:
        mesh = jax.make_mesh(
            tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape)
        )
        if shape == {"fsdp": 4, "tensor": 2}:
            # Rounded where they lie, the weights are those that one device rounds.
            quantized, alone = (load_model(folder, mesh=m, quantize="int8") for m in (mesh, None))
            same = jax.tree.map(
                lambda a, b: bool((np.asarray(a) == b).all()), alone.params, quantized.params
            )
            assert jax.tree.all(same)
            up = quantized.params["layers"][0]["up"]["kernel"][...]
            assert up.scale.sharding.shard_shape(up.scale.shape) == (1, up.shape[1] // 2)
            wanted = np.asarray(alone(tokens))
            with jax.set_mesh(mesh):
                assert np.abs(np.asarray(quantized(tokens)) - wanted).max() < 1e-2
        for stacked in (False, True):
            reads.clear()
            model = load_model(folder, mesh=mesh, stacked=stacked)
            if len(shape) == 2:  # compiling for eight devices takes seconds
                with jax.set_mesh(mesh):
                    logits = np.asarray(model(tokens))
                assert_near(logits, expected)
            if not stacked:
                same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()),
                                    one.params, model.params)  # fmt: skip
                assert jax.tree.all(same)
            device = jax.devices()[0]
            held = sum(
                shard.data.nbytes
                for x in jax.tree.leaves(model.params)
                for shard in x.addressable_shards
                if shard.device == device
            )
            # Nothing is read twice: every slice once, however many devices hold it.
            print(shape, stacked, f"held {held / whole:.3f} read {sum(reads) / whole:.3f}")
            parts = shape.get("fsdp", 1) * shape.get("tensor", 1)
            assert held / whole < 1 / parts + 0.05
            assert sum(reads) <= whole * 1.01


if __name__ == "__main__":
    main(sys.argv[1])
