"""The whole loop on a tiny random model of every family: search, SFT, DPO, export.

    python scripts/family_loops.py                  # all, about half a minute each
    python scripts/family_loops.py gpt-oss phi3     # some
    python scripts/family_loops.py --mesh olmoe     # on eight devices of this CPU, and on one

Models are made by transformers (needs torch), over characters, so that a random model is right
about half of the time and there are pairs to learn from. The exported models must give the logits
of the trained policies. With `--mesh` each family runs twice, and the mesh, which divides weights,
heads and batches or experts, must give the trees of one device. Prints a line per family; exits 1
if one fails.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]  # the tiny models and their task

DENSE = (
    *("llama2", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"),
    *("smollm3", "olmo2", "olmo3", "phi3", "granite"),
)
MIXTURES = ("qwen3-moe", "mixtral", "olmoe", "gpt-oss")
DEVICES = 8


def run(family: str, folder: Path, mesh: dict | None = None, **changes: object) -> None:
    """One run, `changes` being fields of config.json; raises what is wrong with it."""
    from combinations import loop

    import tiny
    from tiny_models import save_with_characters

    model = save_with_characters(family, folder / "model", **changes)
    data = {**tiny.SMALL, "model": {"path": str(model)}, "sampler": tiny.ONE_BATCH}
    loop({**data, "mesh": mesh or {}}, folder / "run", measured=False)
    trained = sorted(path.name for path in folder.glob("run/checkpoints/000/*/dpo"))
    assert trained, "no role was trained on pairs"


def run_in_process(family: str, folder: Path, devices: int) -> list[list[int]]:
    """A run in a process with so many devices; the token ids of its trees, node by node."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", family, str(folder)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shards = sorted(folder.glob("run/rounds/000/trees/*.jsonl"))
    lines = [line for shard in shards for line in shard.read_text().splitlines()]
    return [node["token_ids"] for line in lines for node in json.loads(line)["nodes"]]


def mesh_of(family: str) -> dict[str, int]:
    last = {"expert": 2} if family in MIXTURES else {"data": 2}
    return {"data": 1, "fsdp": 2, "tensor": 2, **last}


def checked(family: str, folder: Path, on_mesh: bool) -> str:
    """Runs a family; what there is to say about it beside that it did."""
    if not on_mesh:
        run(family, folder)
        return ""
    alone = run_in_process(family, folder / "alone", 1)
    spread = run_in_process(family, folder / "mesh", DEVICES)
    assert alone == spread, "the trees differ"
    return f", the same {len(alone)} completions on mesh {mesh_of(family)}"


def main(words: list[str]) -> int:
    if words[:1] == ["--one"]:
        import jax

        run(words[1], Path(words[2]), mesh_of(words[1]) if jax.device_count() > 1 else None)
        return 0
    on_mesh = "--mesh" in words
    failures = 0
    for family in [word for word in words if word != "--mesh"] or (*DENSE, *MIXTURES):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            try:
                said = checked(family, Path(name), on_mesh)
                print(f"ok      {family}, {time.perf_counter() - began:.0f} s{said}", flush=True)
            except Exception:
                failures += 1
                print(f"FAILED  {family}\n{traceback.format_exc()}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
