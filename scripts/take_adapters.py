"""A run whose roles were trained before: its adapters take the place of its training.

    malt label --config run.yaml --import trees.jsonl
    python scripts/take_adapters.py docs/results/svamp_adapters --config run.yaml
    malt eval --config run.yaml

Measures the kept adapters of a published table again, in twenty seconds in place of the training's
hours. A policy's last phase takes the adapter FOLDER/POLICY, an earlier one FOLDER/POLICY-PHASE, as
in `verifier-sft`. Each phase is sealed as `malt train` would seal it, without log or cost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import malt_jax as malt
from malt_jax import cli
from malt_jax.models.adapters import fitted, load_adapter
from malt_jax.training.saver import FINAL, save_weights


def main() -> int:
    folder = Path(sys.argv[1])

    def take(model: Any, data: Any, *, start: Any, saver: Any, mesh: Any, **given: Any) -> None:
        (name, fresh), phase = *start.items(), saver.folder.name
        apart = folder / f"{name}-{phase}"
        path = str(apart if apart.is_dir() else folder / name)
        adapter, own = load_adapter(path, model.spec)
        weights = fitted(adapter, own, fresh, given["lora"], path)
        save_weights(saver, FINAL, weights, {"taken": path})
        print(f"{name}, {phase}: {path}")

    # `stages.train` calls `malt.train` once for each phase, and seals what the saver has.
    malt.train = take  # type: ignore[assignment]
    return cli.main(["train", *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
