"""Peak memory of training by each rule of a finished run, every rule in a process of its own.

    python scripts/rule_memory.py runs/rules/parity/seed-0

Takes the run's first forest, selects each rule's examples from it and trains all roles by them for
a few steps of each phase, since a phase needs its memory at its first steps. In the run itself the
rules are trained one after the other, and the peak of a process depends on what was there before.
Prints the resident peak of each, and keeps them in RUN/rule_memory.json, where
`compare_rules.py` finds them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from compare_rules import MEMORY, PUBLISHED

import malt_jax as malt
from malt_jax.config.run import Config, load
from malt_jax.config.training import TrainConfig
from malt_jax.data.examples import EXAMPLES
from malt_jax.stages.variants import varied
from malt_jax.storage.jsonl import read_records
from malt_jax.tree.node import Forest, Tree

STEPS = 4


def shortened(train: TrainConfig) -> TrainConfig:
    """The same training, a few steps of each phase."""
    phases = {name: train.phase(name) for name in EXAMPLES}
    return replace(train, **{
        name: replace(one, loop=replace(one.loop, steps=STEPS)) for name, one in phases.items()
    })  # fmt: skip


def peak_of(run: Path, rule: str) -> int:
    """Trains by one rule in this process; bytes."""
    config: Config = load(str(run / "config.yaml"))
    for ablation in config.ablations:
        if ablation.name == rule:
            config = varied(config, ablation)
    shards = sorted((run / "rounds" / "000" / "trees").glob("*.jsonl"))
    forest = Forest([tree for shard in shards for tree in read_records(shard, Tree.from_record)])
    theta = config.search.threshold
    data = malt.label(forest, config.data, seed=config.seed, threshold=theta)
    train = shortened(config.train)
    phases = {name: train.phase(name) for name in EXAMPLES}
    dtype = None if config.model.dtype == "auto" else config.model.dtype
    model = malt.load_model(config.model.path, dtype)
    malt.train(model, data, pipeline=config.pipeline, lora=train.lora, seed=config.seed, **phases)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main(run: Path) -> None:
    """Measures every rule of a run."""
    names = [PUBLISHED, *(ablation.name for ablation in load(str(run / "config.yaml")).ablations)]
    peaks = {}
    for name in names:
        child = [sys.executable, __file__, str(run), name]
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
        peaks[name] = int(done.stdout.splitlines()[-1])
        print(f"{name:16} {peaks[name] / 1e6:,.0f} MB", flush=True)
    (run / MEMORY).write_text(json.dumps(peaks, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(peak_of(Path(sys.argv[1]), sys.argv[2]))
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
