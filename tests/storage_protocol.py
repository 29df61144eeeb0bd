"""A tiny resumable run without a model: it uses the storage as the stages do.

    python tests/storage_protocol.py RUN [--redo STAGE | --mirror URL]

The exit status is that of the `malt` command: 0 done, 2 refused, 130 and 143 stopped.
"""

import hashlib
import json
import sys
import time

from malt_jax.errors import RunStopped, UserError
from malt_jax.storage import manifest
from malt_jax.storage.atomic import atomic_directory
from malt_jax.storage.jsonl import append_lines, read_lines, recover
from malt_jax.storage.rundir import RunDir
from malt_jax.storage.signals import graceful_stop, raise_if_stopped, stop_ends_process

QUESTIONS, SHARDS, STEPS, PAUSE = 24, 2, 20, 0.004


def search(run: RunDir) -> None:
    for shard in range(SHARDS):
        path = run.trees(0) / f"{shard:05d}.jsonl"
        if path in manifest.sealed_units(run, "search/000"):
            continue
        recover(path)
        done = {record["question_id"] for record in read_lines(path)} if path.exists() else set()
        for question in range(shard, QUESTIONS, SHARDS):
            if question not in done:
                time.sleep(PAUSE)
                append_lines(path, [{"question_id": question, "text": f"{question}\n" * 2000}])
                raise_if_stopped()
        manifest.seal(run, "search/000", [path], done=shard == SHARDS - 1)


def train(run: RunDir) -> None:
    manifest.verify(run, [run.trees(0)])
    stage, folder = "train/000/generator", run.checkpoint(0, "generator")
    if kept := manifest.sealed_units(run, stage):
        manifest.verify(run, kept[-1:])
        step, weights = int(kept[-1].name), (kept[-1] / "weights").read_bytes()
    else:
        data = [record for path in sorted(run.trees(0).iterdir()) for record in read_lines(path)]
        step, weights = 0, json.dumps(data).encode()
    while step < STEPS:
        time.sleep(PAUSE)
        weights = hashlib.sha256(weights).digest() * 1000
        step += 1
        if step % 5 == 0:
            with atomic_directory(folder / str(step), replace=True) as new:
                (new / "weights").write_bytes(weights)
            manifest.seal(run, stage, [folder / str(step)], done=step == STEPS)
            raise_if_stopped()


def export(run: RunDir) -> None:
    newest = manifest.sealed_units(run, "train/000/generator")[-1]
    manifest.verify(run, [newest])
    with atomic_directory(run.export("generator"), replace=True) as new:
        (new / "model.safetensors").write_bytes((newest / "weights").read_bytes())
        time.sleep(PAUSE)
    manifest.seal(run, "export", [run.export("generator")])


def main(path: str, redo: str | None = None, mirror: str | None = None) -> None:
    opened = RunDir.open(path, {"seed": 1}, "toy", mirror=mirror, mirror_seconds=0.1)
    with graceful_stop(), opened as run:
        if redo:
            manifest.redo(run, redo)
        for name, stage in [
            ("search/000", search),
            ("train/000/generator", train),
            ("export", export),
        ]:
            if not manifest.stage_done(run, name):
                stage(run)
        manifest.verify(run)


if __name__ == "__main__":
    stop_ends_process()
    try:
        main(sys.argv[1], **({sys.argv[2][2:]: sys.argv[3]} if sys.argv[3:] else {}))
    except UserError as error:
        sys.exit(print(error, file=sys.stderr) or 2)
    except RunStopped as stop:
        sys.exit(128 + stop.signal_number)
