"""Log-probabilities of an exported role in llama.cpp beside those of malt-jax.

    pip install gguf xllamacpp
    python scripts/compare_llama_cpp.py runs/quickstart refiner

Takes completions of the run's evaluation, gives llama.cpp (on the CPU, float32) each of their
prefixes as token ids, and compares its distributions over the next token with the model's own.
Expect differences below 1e-3; the last line of output is a JSON object with the largest one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from export_gguf import export

import malt_jax as malt
from malt_jax.storage.jsonl import read_lines

LEAST = -12.0
"""Log-probabilities below are not compared: llama.cpp prints probabilities with few digits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("role")
    parser.add_argument("--completions", type=int, default=8)
    words = parser.parse_args()
    folder = words.run / "export" / words.role
    model = malt.load_model(str(folder))
    turns = (
        turn
        for draw in read_lines(words.run / "eval" / "malt.jsonl")
        for turn in draw["turns"]
        if turn["role"] == words.role
    )
    chosen = [turn for _, turn in zip(range(words.completions), turns, strict=False)]
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary, "model.gguf")
        export(folder, target)
        server = _server(target)
        worst, compared, same = (0.0, 0.0, 0.0), 0, 0
        for turn in chosen:
            prompt = [int(i) for i in model.tokenizer.prompt_ids(turn["prompt"])]
            ids = prompt + [int(i) for i in model.tokenizer.encode(turn["text"])]
            own = np.asarray(jax.nn.log_softmax(model(np.array([ids], np.int32))[0], axis=-1))
            for end in range(len(prompt), len(ids) + 1):
                theirs = _next(server, ids[:end], own.shape[-1])
                ours = own[end - 1]
                likely = [i for i, p in theirs.items() if p > LEAST]
                worst = max(
                    worst, *((abs(ours[i] - theirs[i]), ours[i], theirs[i]) for i in likely)
                )
                same += int(ours.argmax()) == max(theirs, key=theirs.__getitem__)
                compared += 1
    difference, ours, theirs = map(float, worst)
    found = {"role": words.role, "tokens": compared, "same_argmax": same}
    print(json.dumps({**found, "largest_difference": difference, "between": [ours, theirs]}))


def _server(target: Path):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(target)
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = False
    # By default keys and values are cached and multiplied in half precision.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def _next(server, ids: list[int], vocab: int) -> dict[int, float]:
    """llama.cpp's log-probability of every next token."""
    reply = server.handle_completions(
        {"prompt": ids, "max_tokens": 1, "logprobs": vocab, "temperature": 1.0, "seed": 1}
    )
    [entry] = reply["choices"][0]["logprobs"]["content"]
    return {one["id"]: one["logprob"] for one in entry["top_logprobs"]}


if __name__ == "__main__":
    main()
