"""Make a tiny base model: a character-level Llama that plays three roles badly.

    python scripts/make_quickstart_model.py
    python scripts/make_quickstart_model.py --task triples --out runs/bases/triples

Without arguments it makes the quickstart's: it writes `malt_jax/assets/quickstart/` (a Hugging Face
directory of under 4 MB) and prints, at the end, how good each role is on held-out questions. About
5.8 million tokens: nine minutes on two CPU cores (6 min 42 s for the first four stages, 2 min 2 s
for the last). Those of the other tasks have stages of their own; read the figures at the end before
you use one.

The model is made in up to five stages, all on generated dialogues (`base_corpora.py`) over
questions of the *train* split:

1. a primer: direct answers, careful checks, corrections that follow the check;
2. a textbook: mostly checks and corrections;
3. a lifelike corpus with the learning rate going to zero: a share of its critics says `ok` without
   checking and a share of its refiners repeats the draft whatever the critic found;
4. the same again with more direct answers, from a lower learning rate;
5. the same again with more checks.

So the base can check and can correct, but often does not bother. Nothing is added to its samples:
its faults are those of its corpus and of a short training. The same seed on the same machine and
versions gives the same model.

The shipped weights come from these stages, but not in one go: `practice` was added after the first
four had been run and judged too poor at checking, and was run from their result with a random
stream of its own (seed 1). A run of this script gives a model like it, not the same bytes; how
different two such models are, and what that does to the results, is said in docs/method.md.

The decoder is written out in plain JAX: matrix products are kept two-dimensional, which trains
about 1.5 times faster on a CPU than `[B, T, D] @ [D, F]`, whose weight gradient contracts two axes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from base_corpora import CORPORA, PROMPTS, Corpus, Stage
from safetensors.numpy import save_file

from malt_jax.tasks import get_task
from malt_jax.tasks.base import Question

ASSET = Path(__file__).parents[1] / "malt_jax" / "assets" / "quickstart"

# ---- tokens -------------------------------------------------------------------------------------

PAD, BOS, EOS = 0, 1, 2
SPECIALS = ["<pad>", "<s>", "</s>"]
CHARACTERS = "0123456789*x+=|,-/;<> abcdefghijklmnopqrstuvwyz:"
VOCAB = 64
IDS = {char: i + len(SPECIALS) for i, char in enumerate(CHARACTERS)}
CHAR_OF = {i: char for char, i in IDS.items()}


def encode(text: str) -> list[int]:
    """Token ids, one a character."""
    return [IDS[char] for char in text]


def decode(ids: list[int]) -> str:
    """The text up to the end of turn."""
    ids = list(ids)
    ids = ids[: ids.index(EOS)] if EOS in ids else ids
    return "".join(CHAR_OF.get(i, "") for i in ids)


def packed_rows(make_document, rows: int, width: int, carry: bool):
    """Documents packed into `ids, positions, segments, weights`, each `[rows, width]`.

    Segments count from 1 (0 is padding) and keep attention inside a document; weights are 1 on the
    completion and its end of turn only, for a prompt's numbers are random. See `Stage.carry`.
    """
    ids, positions, segments = (np.zeros((rows, width), np.int32) for _ in range(3))
    weights = np.zeros((rows, width), np.float32)
    row = at = segment = 0
    while True:
        prompt, completion = make_document()
        tokens = [*encode(prompt), *encode(completion), EOS]
        if at + len(tokens) > width:
            row, at, segment = row + 1, 0, 0
            if row == rows:
                return ids, positions, segments, weights
            if not carry:
                continue
        end, segment = at + len(tokens), segment + 1
        ids[row, at:end], positions[row, at:end] = tokens, range(len(tokens))
        segments[row, at:end], weights[row, at + len(prompt) : end] = segment, 1
        at = end


# ---- the decoder (Hugging Face's Llama) ---------------------------------------------------------

WIDTH, LAYERS, HEAD_DIM, MLP_RATIO = 128, 4, 32, 3
ROWS = 24
"""Rows of `--width` tokens per step of training."""
EPS, THETA = 1e-5, 10000.0


def init_params(key: jax.Array, width: int, layers: int) -> dict:
    """Weights as `[in, out]`, scaled by 1/sqrt(in); layers are a list, nothing is stacked."""
    keys = iter(jax.random.split(key, 2 + 7 * layers))

    def matrix(d_in: int, d_out: int, scale: float = 1.0):
        return jax.random.normal(next(keys), (d_in, d_out)) * scale / math.sqrt(d_in)

    params = {
        "embed": jax.random.normal(next(keys), (VOCAB, width)) * 0.5,
        "head": matrix(width, VOCAB),
        "norm": jnp.ones(width),
        "layers": [],
    }
    mlp = MLP_RATIO * width
    for _ in range(layers):
        layer = {name: matrix(width, width) for name in ("q", "k", "v")}
        layer["o"] = matrix(width, width, 0.5)
        layer |= {name: matrix(width, mlp) for name in ("gate", "up")}
        layer["down"] = matrix(mlp, width, 0.5)
        layer |= {"norm_attention": jnp.ones(width), "norm_mlp": jnp.ones(width)}
        params["layers"].append(layer)
    return params


def linear(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`[B, T, D] @ [D, F]` as one two-dimensional product (see the module's docstring)."""
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[-1])


def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Root-mean-square norm over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * weight


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position on `x [B, T, H, h]`, halves paired as Hugging Face's Llama pairs them."""
    frequency = THETA ** (-jnp.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angle = (positions[..., None] * frequency)[:, :, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def logits_of(params: dict, ids: jax.Array, positions: jax.Array, segments: jax.Array):
    """`[B, T]` each -> logits `[B, T, V]`, causal and within a segment."""
    batch, time_ = ids.shape
    mask = (segments[:, :, None] == segments[:, None, :]) & jnp.tril(jnp.ones((time_, time_), bool))
    x = params["embed"][ids]
    for layer in params["layers"]:
        y = norm(x, layer["norm_attention"])
        q, k, v = (
            linear(y, layer[name]).reshape(batch, time_, -1, HEAD_DIM) for name in ("q", "k", "v")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", rotate(q, positions), rotate(k, positions))
        scores = jnp.where(mask[:, None], scores / math.sqrt(HEAD_DIM), -1e9)
        out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), v)
        x = x + linear(out.reshape(batch, time_, -1), layer["o"])
        y = norm(x, layer["norm_mlp"])
        x = x + linear(
            jax.nn.silu(linear(y, layer["gate"])) * linear(y, layer["up"]), layer["down"]
        )
    return linear(norm(x, params["norm"]), params["head"])


# ---- training -----------------------------------------------------------------------------------


def loss_of(params: dict, batch: tuple) -> jax.Array:
    """Mean cross entropy over the weighted tokens of a packed batch."""
    ids, positions, segments, weights = batch
    logits = logits_of(params, ids[:, :-1], positions[:, :-1], segments[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def make_optimizer(params: dict, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon for the layers' matrices, Adam for the rest, at 0.15 of Muon's rate."""
    labels = jax.tree.map(lambda x: "muon" if x.ndim == 2 else "adam", params)
    labels |= {"embed": "adam", "head": "adam"}
    adam = optax.adam(lambda step: 0.15 * rate(step), b2=0.98)
    return optax.partition({"muon": optax.contrib.muon(rate), "adam": adam}, labels)


def train(params: dict, rng: random.Random, corpus: Corpus, stage: Stage, args) -> dict:
    """One stage on freshly generated batches; prints the loss and tokens per second."""
    first, last = stage.rates
    if first == last:
        rate = optax.warmup_constant_schedule(0, first, 50)
    else:
        rate = optax.linear_schedule(first, last, stage.steps)
    optimizer = make_optimizer(params, rate)
    state = optimizer.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    start, losses = time.time(), []
    for i in range(1, stage.steps + 1):
        batch = packed_rows(partial(corpus.document, rng, stage), ROWS, args.width, stage.carry)
        params, state, loss = step(params, state, batch)
        losses.append(loss)
        if i % 100 == 0 or i == stage.steps:
            mean = np.mean([float(x) for x in losses])
            speed = i * ROWS * args.width / (time.time() - start)
            print(
                f"{stage.name} {i}/{stage.steps} loss {mean:.4f} {speed:,.0f} token/s", flush=True
            )
            losses = []
    return params


# ---- Hugging Face files -------------------------------------------------------------------------

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": MLP_RATIO * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH // HEAD_DIM,
    "num_key_value_heads": WIDTH // HEAD_DIM,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
    "max_position_embeddings": 256,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}
NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm_attention": "input_layernorm",
    "norm_mlp": "post_attention_layernorm",
}


def hugging_face_tensors(params: dict) -> dict[str, np.ndarray]:
    """The weights under Hugging Face's names; matrices become `[out, in]`."""
    tensors = {
        "model.embed_tokens.weight": params["embed"],
        "model.norm.weight": params["norm"],
        "lm_head.weight": params["head"].T,
    }
    for i, layer in enumerate(params["layers"]):
        for ours, theirs in NAMES.items():
            weight = layer[ours]
            tensors[f"model.layers.{i}.{theirs}.weight"] = weight.T if weight.ndim == 2 else weight
    return {name: np.ascontiguousarray(np.asarray(x, np.float32)) for name, x in tensors.items()}


def write_tokenizer(folder: Path) -> None:
    """One token a character, no begin token added; padding up to `VOCAB` stays unused."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *CHARACTERS, "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*SPECIALS, "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, value: dict) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n")


CARD = """---
library_name: transformers
license: apache-2.0
tags: [malt-jax, toy]
---
# The base model of the task `{task}`

A {millions:.2f}M-parameter character-level Llama made by `scripts/make_quickstart_model.py` (seed
{seed}) so that the whole method can be tried on a laptop's CPU. It is a toy: {about}, and does
nothing else.

## How it was made
Trained from random weights, first {textbook} steps on textbook dialogues, then {mixed} steps on
a more lifelike mix in which {lazy} of the critics say `ok` without checking and {deaf}
of the refiners repeat the draft against a critique. All questions come from the task's train split;
the held-out questions were never seen. It is deliberately small and briefly trained: answering in
one step is often wrong. No noise is added to its samples.

## Prompts (one turn ends at `</s>`)
| role | prompt | a good turn |
| --- | --- | --- |
{examples}

## On {probes} held-out questions, sampled at temperature {temperature}
{figures}
"""


def write_directory(
    folder: Path, params: dict, corpus: Corpus, args: argparse.Namespace, lines: str
) -> None:
    """Everything `AutoModelForCausalLM` and `AutoTokenizer` need, and the model card."""
    count = sum(x.size for x in jax.tree.leaves(params))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(hugging_face_tensors(params), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    ends = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    generation = ends | {"do_sample": True, "temperature": args.temperature, "max_new_tokens": 32}
    write_json(folder / "generation_config.json", generation)
    write_tokenizer(folder)
    card = CARD.format(
        millions=count / 1e6,
        seed=args.seed,
        task=args.task,
        about=corpus.about,
        textbook=sum(stage.steps for stage in corpus.stages if not stage.lazy),
        mixed=sum(stage.steps for stage in corpus.stages if stage.lazy),
        lazy=" then ".join(f"{stage.lazy:.0%}" for stage in corpus.stages if stage.lazy),
        deaf=f"{corpus.stages[-1].deaf:.0%}",
        examples=_rows(corpus),
        probes=args.probes,
        temperature=args.temperature,
        figures=lines,
    )
    (folder / "README.md").write_text(card)


def _rows(corpus: Corpus) -> str:
    """One row of the card's table per role."""
    cells = ((role, f"`{prompt}`", f"`{turn}`") for role, prompt, turn in corpus.examples())
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


# ---- a look at the result -----------------------------------------------------------------------


@partial(jax.jit, static_argnames="new")
def sample(params: dict, ids: jax.Array, start: jax.Array, key, temperature, new: int):
    """Continues left-padded prompts `ids [B, P]` by `new` tokens, without a cache: a check only."""
    width = ids.shape[1]
    ids = jnp.pad(ids, ((0, 0), (0, new)))
    at = jnp.arange(width + new)[None]
    segments = jnp.where(at >= start[:, None], 1, 0)
    positions = jnp.maximum(at - start[:, None], 0)

    def body(t, ids):
        logits = logits_of(params, ids, positions, segments)[:, width + t - 1]
        token = jax.random.categorical(jax.random.fold_in(key, t), logits / temperature)
        return ids.at[:, width + t].set(token)

    return jax.lax.fori_loop(0, new, body, ids)[:, width:]


FEW = 100
"""Questions of the look after each stage."""


def answers(params: dict, prompts: list[str], seed: int, temperature: float, new: int) -> list[str]:
    """One sampled turn for each prompt."""
    width = max(map(len, prompts))
    ids = np.zeros((len(prompts), width), np.int32)
    start = np.array([width - len(prompt) for prompt in prompts])
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = encode(prompt)
    out = sample(params, ids, start, jax.random.key(seed), temperature, new)
    return [decode(row) for row in np.asarray(out).tolist()]


def figures(
    params: dict, corpus: Corpus, count: int, temperature: float, draws: int
) -> dict[str, float]:
    """How often each role does its work, on held-out questions and the generator's own drafts."""
    task = get_task(corpus.task.name)
    # Seed 0 has the questions of the results, which must not choose a base or a task.
    held_out = task.load("eval", limit=count, seed=1)

    def right(turns: list[str], questions: list[Question]) -> list[bool]:
        return [grade.correct for grade in task.grader.grade(turns, questions)]

    def say(role: str, seed: int, new: int, fills: list[dict[str, str]]) -> list[str]:
        prompts = [PROMPTS[role].format(**fill) for fill in fills]
        return answers(params, prompts, seed, temperature, new)

    asked = [{"question": q.text} for q in held_out]
    drafts = [say("solve", 1 + n, 8, asked) for n in range(draws)]
    drafted = [(q, d, corpus.check(q.text, d)) for q, d in zip(held_out, drafts[0], strict=True)]
    turns = [(q, d, expected) for q, d, expected in drafted if expected]
    if not turns:
        return {"generator right": 0.0}
    longest = max(len(expected) for *_, expected in turns) + 2
    checks = say("check", 2, longest, [{"question": q.text, "draft": d} for q, d, _ in turns])
    careful = [(c, t[2]) for c, t in zip(checks, turns, strict=True) if c != "ok"]
    wrong = [turn for turn in turns if not turn[2].endswith("ok")]
    fills = [{"question": q.text, "draft": d, "critique": e} for q, d, e in wrong]
    blank = [fill | {"critique": "ok"} for fill in fills]
    mistaken = [q for q, *_ in wrong]
    return {
        "generator right": float(np.mean([right(some, held_out) for some in drafts])),
        "verifier does check": len(careful) / len(turns),
        "and its check is right": float(np.mean([c == e for c, e in careful])),
        "refiner corrects a wrong draft after a right check": float(
            np.mean(right(say("fix", 3, 8, fills), mistaken))
        ),
        "and after a check that says ok": float(np.mean(right(say("fix", 3, 8, blank), mistaken))),
    }


def main() -> None:
    """Trains all stages, writes the directory, prints the figures of the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=tuple(CORPORA), default="arithmetic")
    parser.add_argument("--out", type=Path, help="default: the asset, for arithmetic only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--probes", type=int, default=500)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    if args.out is None and args.task != "arithmetic":
        parser.error("--out: give a folder, such as runs/bases/triples")
    corpus, folder = CORPORA[args.task], (args.out or ASSET).resolve()

    params = init_params(jax.random.key(args.seed), WIDTH, LAYERS)
    rng = random.Random(args.seed)
    for stage in corpus.stages:
        params = train(params, rng, corpus, stage, args)
        found = figures(params, corpus, FEW, args.temperature, 2)
        print(", ".join(f"{name}: {value:.0%}" for name, value in found.items()), flush=True)

    result = figures(params, corpus, args.probes, args.temperature, 8)
    lines = "\n".join(f"- {name}: {value:.1%}" for name, value in result.items())
    print(lines)
    write_directory(folder, params, corpus, args, lines)
    print(f"wrote {folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
