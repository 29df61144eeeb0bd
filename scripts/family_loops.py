"""The whole loop on a tiny random model of every family: search, SFT, DPO, export.

    python scripts/family_loops.py                  # all, about half a minute each
    python scripts/family_loops.py gpt-oss phi3     # some

Models are made by transformers (needs torch), over characters, so that a random model is right
about half of the time and there are pairs to learn from. The exported models must give the logits
of the trained policies. Prints a line per family; exits 1 if one fails.
"""

import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]  # the tiny models and their task

FAMILIES = (
    *("smollm3", "olmo2", "olmo3", "phi3", "granite", "gemma3"),
    *("qwen3-moe", "mixtral", "olmoe", "gpt-oss"),
)


def run(family: str, folder: Path, **changes: object) -> None:
    """One run, `changes` being fields of config.json; raises what is wrong with it."""
    from combinations import loop

    import tiny
    from tiny_models import save_with_characters

    model = save_with_characters(family, folder / "model", **changes)
    data = {**tiny.SMALL, "model": {"path": str(model)}, "sampler": tiny.ONE_BATCH}
    loop(data, folder / "run", measured=False)
    trained = sorted(path.name for path in folder.glob("run/checkpoints/000/*/dpo"))
    assert trained, "no role was trained on pairs"


def main(families: list[str]) -> int:
    failures = 0
    for family in families or FAMILIES:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            try:
                run(family, Path(name))
                print(f"ok      {family}, {time.perf_counter() - began:.0f} s", flush=True)
            except Exception:
                failures += 1
                print(f"FAILED  {family}\n{traceback.format_exc()}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
