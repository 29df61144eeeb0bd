"""Runs in a process of its own with 8 fake devices: the same training on several layouts."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh

from malt_jax.config.lora import LoraConfig
from malt_jax.config.training import DpoConfig, LoopConfig, OptimConfig, SftConfig
from malt_jax.models.lora import init_adapter
from malt_jax.models.sharding import named
from malt_jax.storage.checkpoints import CheckpointFolder
from malt_jax.training.fit import train_phase
from malt_jax.training.saver import FINAL, load_weights
from training_model import SPEC, TinyModel, dpo_examples, sft_examples, tiny_model

AXES = ("data", "fsdp", "tensor")
LAYOUTS = {
    "fsdp": ((1, 8, 1), range(8)),
    "mixed": ((2, 2, 2), range(8)),
    "permuted": ((2, 2, 2), (5, 2, 7, 0, 3, 6, 1, 4)),
}


def mesh_of(shape: tuple[int, ...], order) -> Mesh:
    devices = np.array(jax.devices())[list(order)].reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def placed(model: TinyModel, mesh: Mesh) -> TinyModel:
    flat = []
    for path, variable in nnx.to_flat_state(model.params):
        value = variable[...]
        axes = variable.get_metadata()["axes"]
        axes = (None,) * (value.ndim - len(axes)) + tuple(axes)
        flat.append((path, variable.replace(jax.device_put(value, named(axes, value.shape, mesh)))))
    return TinyModel(model.spec, model.graph, nnx.from_flat_state(flat))


def losses(mesh: Mesh | None, folder: Path, *, full: bool = False) -> list[float]:
    """Losses of 50 steps of SFT (a trained zero-B adapter or all weights), then 10 of DPO."""
    model = tiny_model()
    model = model if mesh is None else placed(model, mesh)
    adapter = init_adapter(SPEC, LoraConfig(rank=4), jax.random.key(0), stacked=True)
    loop = LoopConfig(row_length=64, micro_tokens=512)
    optim = OptimConfig(learning_rate=1e-3)
    sft = SftConfig(epochs=5, batch_size=16, optim=optim, loop=loop)
    start = model.params if full else adapter
    first = train_phase(
        model,
        start,
        sft_examples(160),
        sft,
        saver=CheckpointFolder(folder / "sft"),
        dropout=0.0,
        mesh=mesh,
    )
    found = [record["loss"] for record in first.log]
    if not full:
        dpo = DpoConfig(epochs=1, batch_size=8, optim=optim, loop=loop)
        policy = first.trainable
        pairs = dpo_examples(80)
        second = train_phase(
            model, policy, pairs, dpo, saver=CheckpointFolder(folder / "dpo"), mesh=mesh
        )
        found += [record["loss"] for record in second.log]
    return found


def main() -> None:
    assert len(jax.devices()) == 8
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results["one"] = losses(None, folder / "one")
        for layout, (shape, order) in LAYOUTS.items():
            results[layout] = losses(mesh_of(shape, order), folder / layout)
        results["full_one"] = losses(None, folder / "full_one", full=True)
        results["full_mixed"] = losses(
            mesh_of((2, 2, 2), range(8)), folder / "full_mixed", full=True
        )
        # Saved on 8 devices, restored on one.
        like = init_adapter(SPEC, LoraConfig(rank=4), jax.random.key(1), stacked=True)
        restored = load_weights(CheckpointFolder(folder / "mixed" / "sft"), FINAL, like)
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(restored)} == {1}
        alone = load_weights(CheckpointFolder(folder / "one" / "sft"), FINAL, like)
        gap = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), restored, alone)
        results["weights_gap"] = [max(jax.tree.leaves(gap))]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
