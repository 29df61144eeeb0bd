"""Every combination of dtype, sharing, full weights, rounds and mesh, from search to export.

    python scripts/combinations.py              # all 48
    python scripts/combinations.py --pairwise   # 6 in which every two values meet

Each combination is a run on a tiny random model: search, labels and training in one session, then
evaluation and export in another, which loads from disk what the first has saved. The
exported models must give the logits of the trained policies. Combinations with a mesh run on eight
fake CPU devices. Prints a line per combination; exits 1 if one fails.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tiny model and its task

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "sharing": ("adapters", "shared"),
    "full": (False, True),
    "rounds": (1, 2),
    "mesh": ("one device", "fsdp=8", "data=2 fsdp=2 tensor=2"),
}
ALL = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference of logits, of order 1, between a trained policy and its exported model."""


def pairwise() -> list[dict]:
    """The fewest combinations in which every two values of different fields meet.

    Each mesh is met twice, once with each value of every other field. Which of the two comes first
    differs by field and mesh: so no two fields go together, or against each other, on all meshes.
    """
    *fields, mesh = CHOICES
    return [
        {name: CHOICES[name][turn ^ (place == at)] for place, name in enumerate(fields)}
        | {mesh: on}
        for at, on in enumerate(CHOICES[mesh])
        for turn in (0, 1)
    ]


def run(combination: dict, model: Path, folder: Path) -> None:
    """One run in two sessions; raises what is wrong with it."""
    import tiny

    mesh = dict(part.split("=") for part in combination["mesh"].split() if "=" in part)
    loop(
        {
            **tiny.SMALL,
            "model": {"path": str(model), "dtype": combination["dtype"]},
            "sampler": tiny.ONE_BATCH,
            "sharing": combination["sharing"],
            "rounds": combination["rounds"],
            "mesh": {axis: int(size) for axis, size in mesh.items()},
            "train": {**tiny.SMALL["train"], "full": combination["full"]},
            "eval": {"trees": 0, "systems": ["sa", "malt"], "baseline": "sa@3"},
        },
        folder,
    )


def loop(data: dict, folder: Path, measured: bool = True) -> None:
    """Search to training in one session; evaluation, if it is `measured`, and export in another."""
    from malt_jax import config as configs
    from malt_jax.progress import Progress
    from malt_jax.stages.evaluate import evaluate
    from malt_jax.stages.export import export
    from malt_jax.stages.label import label
    from malt_jax.stages.search import search
    from malt_jax.stages.session import Session
    from malt_jax.stages.train import train
    from malt_jax.storage.rundir import RunDir

    config = configs.from_dict({**data, "output_dir": str(folder), "quiet": True})
    plain = configs.reading.to_dict(config)
    with RunDir.open(folder, plain, "combinations") as directory:
        session = Session(config, directory, Progress(quiet=True))
        for round in range(config.rounds):
            search(session, round)
            label(session, round)
            train(session, round)
        session.close()
    with RunDir.open(folder, plain, "combinations") as directory:
        session = Session(config, directory, Progress(quiet=True))
        if measured:
            results = evaluate(session)
            assert results["systems"], "no system in the table"
        export(session)
        check_exports(session)
        session.close()


def check_exports(session) -> None:
    """The merged model of each role gives the logits of its trained policy."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from malt_jax.models.lora import Adapter, merge_adapter
    from malt_jax.models.model import _logits, load_model
    from malt_jax.models.quantized import weights_dtype
    from malt_jax.stages.policies import policies_after

    tokens = jnp.asarray(np.arange(4, 36).reshape(2, 16), jnp.int32)
    trained = policies_after(session, session.config.rounds - 1)
    for role in session.pipeline.roles:
        weights = trained[role.name]
        params = session.model.params
        if isinstance(weights, Adapter):
            params = merge_adapter(params, weights)
        elif weights is not None:
            params = jax.tree.map(lambda x, like: x.astype(like.dtype), weights, params)
        expected = _logits(session.model.graph, params, tokens)
        dtype = weights_dtype(session.model.params)
        exported = load_model(session.run.export(role.name), dtype=dtype, mesh=session.mesh)
        gap = float(jnp.max(jnp.abs(exported(tokens) - expected)))
        allowed = TOLERANCE[jnp.dtype(dtype).name]
        assert gap <= allowed, f"{role.name}: logits of the export differ by {gap:.2g}"


def work(indices: list[int]) -> int:
    """Runs combinations of one kind of device in this process; returns the number of failures."""
    import tiny

    failures = 0
    with tempfile.TemporaryDirectory() as name:
        model = tiny.write_model(Path(name) / "model", width=64)
        for index in indices:
            said = ", ".join(f"{key} {value}" for key, value in ALL[index].items())
            try:
                run(ALL[index], model, Path(name) / str(index))
                print(f"ok      {said}", flush=True)
            except Exception:
                failures += 1
                print(f"FAILED  {said}\n{traceback.format_exc()}", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairwise", action="store_true")
    parser.add_argument("--only", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        return work(options.only)
    chosen = pairwise() if options.pairwise else ALL
    # The two kinds of device need processes of their own; side by side they keep two cores busy.
    started = []
    for devices in (1, 8):
        some = [c for c in chosen if (c["mesh"] == "one device") == (devices == 1)]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        words = [sys.executable, __file__, "--only", *(str(ALL.index(c)) for c in some)]
        started.append(subprocess.Popen(words, env=environment))
    failed = sum(process.wait() for process in started)
    print(f"{len(chosen)} combinations, {'all ok' if not failed else 'some FAILED'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
