"""One of several processes: draws completions and trains on one mesh over all of them.

`python distributed_pair.py COORDINATOR PROCESSES PROCESS MODEL FOLDER` prints what it found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from malt_jax import distributed
from malt_jax.models.mesh_config import MeshConfig


def main() -> None:
    coordinator, processes, process, model_path, folder = sys.argv[1:]
    if int(processes) > 1:
        config = MeshConfig(coordinator=coordinator, processes=int(processes), process=int(process))
        distributed.initialize(config)
    import jax
    import numpy as np

    from malt_jax.models.lora import init_adapter
    from malt_jax.models.lora_config import LoraConfig
    from malt_jax.models.mesh import Layout, make_mesh
    from malt_jax.models.model import load_model
    from malt_jax.sampling.config import SamplerConfig
    from malt_jax.sampling.engine import Request, Sampler, Settings
    from malt_jax.training.config import DpoConfig, LoopConfig, SftConfig
    from malt_jax.training.examples import DpoExample, SftExample
    from malt_jax.training.phases import train_dpo, train_sft

    assert jax.process_count() == int(processes)
    mesh = make_mesh(Layout(1, len(jax.devices()), 1, 1, ""))
    model = load_model(model_path, mesh=mesh)
    keys = np.arange(6, dtype=np.uint32).reshape(3, 2)
    requests = [Request((1, 5 + i, 6, 7), keys + i) for i in range(4)]
    sampler = Sampler(
        model,
        SamplerConfig(prefix_buckets=(8,), new_token_buckets=(8,),
                      memory_gb=0.1, cache_dir=None),
        mesh=mesh,
    )  # fmt: skip
    drawn = sampler.sample(requests, Settings(temperature=1.0, max_new_tokens=8, end_ids=(2,)))
    loop = LoopConfig(row_length=32, micro_tokens=128)
    sft = [SftExample((1, 5, i), (6, 7, 2), str(i)) for i in range(8)]
    pairs = [DpoExample((1, 5, i), (6, 7, 2), (8, 9, 2), str(i)) for i in range(8)]
    start = init_adapter(model.spec, LoraConfig(rank=2), jax.random.key(0))
    first = train_sft(
        model, start, sft, SftConfig(epochs=1, batch_size=4, loop=loop),
        folder=Path(folder, "sft"), mesh=mesh,
    )  # fmt: skip
    second = train_dpo(
        model, first.trainable, first.trainable, pairs, DpoConfig(batch_size=4, loop=loop),
        folder=Path(folder, "dpo"), mesh=mesh,
    )  # fmt: skip
    found = {
        "tokens": [[list(map(int, c.tokens)) for c in row] for row in drawn],
        "losses": [record["loss"] for record in first.log + second.log],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
