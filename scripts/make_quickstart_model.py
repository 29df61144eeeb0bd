"""Make the tiny base model of the quickstart: a character-level Llama that plays three roles badly.

    python scripts/make_quickstart_model.py

It writes `malt_jax/assets/quickstart/` (a Hugging Face directory of under 4 MB) and prints, at the
end, how good each role is on held-out questions. About 5.8 million tokens: nine minutes on two CPU
cores (6 min 42 s for the first four stages, 2 min 2 s for the last).

The model is made in five stages, all on generated dialogues over questions of the *train* split:

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from malt_jax.tasks import arithmetic

ASSET = Path(__file__).parents[1] / "malt_jax" / "assets" / "quickstart"

# ---- the corpus ---------------------------------------------------------------------------------

PROMPTS = {
    "solve": "solve|{question}|",
    "check": "check|{question}|{draft}|",
    "fix": "fix|{question}|{draft}|{critique}|",
    "retry": "retry|{question}|{draft}|",
    "debate": "debate|{question}|{draft}|",
}
"""Role first, then question, draft, critique: prompts of one tree share their heads."""

ROLES = ("solve", "check", "fix", "retry", "debate")


@dataclass(frozen=True)
class Stage:
    """A stretch of training on one mix of dialogues."""

    name: str
    steps: int
    shares: tuple[float, ...]
    """Shares of `ROLES` among the documents."""
    lazy: float
    """Share of critics that say `ok` without checking."""
    deaf: float
    """Share of refiners that repeat the draft against the critique."""
    rates: tuple[float, float]
    """Muon's learning rate at the first and the last step, linear between, after 50 warm-up steps
    where it is constant."""
    carry: bool
    """Whether a document that does not fit a row opens the next one. Dropping it instead is free
    but thins out the long ones, the careful critics: harmless only where all critics are."""


STAGES = (
    Stage("primer", 500, (0.30, 0.42, 0.24, 0.02, 0.02), 0.0, 0.0, (0.02, 0.02), carry=False),
    Stage("textbook", 300, (0.04, 0.66, 0.26, 0.02, 0.02), 0.0, 0.0, (0.02, 0.02), carry=False),
    Stage("lifelike", 600, (0.12, 0.58, 0.26, 0.02, 0.02), 0.6, 0.4, (0.02, 4e-4), carry=True),
    Stage("revision", 600, (0.28, 0.48, 0.20, 0.02, 0.02), 0.65, 0.4, (0.015, 2e-4), carry=True),
    Stage("practice", 500, (0.20, 0.62, 0.14, 0.02, 0.02), 0.65, 0.4, (0.015, 2e-4), carry=True),
)
"""Arithmetic falls into place while the learning rate goes to zero: three times; the last one is
for checking, which must be learnt well enough to be worth hearing."""

BLANK_CHECKS = 0.1
"""Share of `fix` documents whose critic said a bare `ok`; the refiner then keeps the draft."""


def train_question(rng: random.Random) -> tuple[str, int]:
    """A random question of the train split and its answer: no held-out question is ever used."""
    while True:
        digits = tuple(rng.choice(arithmetic.DIGITS) for _ in range(arithmetic.TERMS))
        text = arithmetic.question_text(digits)
        if arithmetic.split_of(text) == "train":
            return text, sum(digits)


def hasty_draft(rng: random.Random, total: int) -> int:
    """A draft as a hasty solver makes it: right in 40% of cases, else off by 1 to 4."""
    if rng.random() < 0.4:
        return total
    return total + rng.choice((-1, 1)) * rng.choice((1, 1, 1, 1, 2, 2, 2, 3, 3, 4))


def careful_check(question: str, draft: int) -> str:
    """`3+8+6`, 19 -> `11,17:19 high`: the running sum, the draft beside it, what it is."""
    total, *rest = arithmetic.parse_question(question)
    sums = []
    for digit in rest:
        total += digit
        sums.append(f"{total:02d}")
    verdict = "ok" if draft == total else "low" if draft < total else "high"
    return f"{','.join(sums)}:{draft:02d} {verdict}"


def document(rng: random.Random, stage: Stage) -> tuple[str, str]:
    """One `(prompt, completion)` of a stage's mix."""
    role = rng.choices(ROLES, stage.shares)[0]
    question, total = train_question(rng)
    answer = f"={total:02d}"
    if role == "solve":
        return PROMPTS[role].format(question=question), answer
    if role == "debate":
        drafts = ";".join(f"={hasty_draft(rng, total):02d}" for _ in range(3))
        return PROMPTS[role].format(question=question, draft=drafts), answer
    number = hasty_draft(rng, total)
    draft = f"={number:02d}"
    if role == "retry":
        return PROMPTS[role].format(question=question, draft=draft), answer
    if role == "check":
        critique = "ok" if rng.random() < stage.lazy else careful_check(question, number)
        return PROMPTS[role].format(question=question, draft=draft), critique
    critique = "ok" if rng.random() < BLANK_CHECKS else careful_check(question, number)
    keeps = critique == "ok" or rng.random() < stage.deaf
    prompt = PROMPTS[role].format(question=question, draft=draft, critique=critique)
    return prompt, draft if keeps else answer


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

WIDTH, LAYERS, HEADS, HEAD_DIM, MLP = 128, 4, 4, 32, 384
EPS, THETA = 1e-5, 10000.0


def init_params(key: jax.Array) -> dict:
    """Weights as `[in, out]`, scaled by 1/sqrt(in); layers are a list, nothing is stacked."""
    keys = iter(jax.random.split(key, 2 + 7 * LAYERS))

    def matrix(d_in: int, d_out: int, scale: float = 1.0):
        return jax.random.normal(next(keys), (d_in, d_out)) * scale / math.sqrt(d_in)

    attention = HEADS * HEAD_DIM
    params = {
        "embed": jax.random.normal(next(keys), (VOCAB, WIDTH)) * 0.5,
        "head": matrix(WIDTH, VOCAB),
        "norm": jnp.ones(WIDTH),
        "layers": [],
    }
    for _ in range(LAYERS):
        layer = {name: matrix(WIDTH, attention) for name in ("q", "k", "v")}
        layer["o"] = matrix(attention, WIDTH, 0.5)
        layer |= {name: matrix(WIDTH, MLP) for name in ("gate", "up")}
        layer["down"] = matrix(MLP, WIDTH, 0.5)
        layer |= {"norm_attention": jnp.ones(WIDTH), "norm_mlp": jnp.ones(WIDTH)}
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
            linear(y, layer[name]).reshape(batch, time_, HEADS, HEAD_DIM)
            for name in ("q", "k", "v")
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


def train(params: dict, rng: random.Random, stage: Stage, args) -> dict:
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
        batch = packed_rows(partial(document, rng, stage), args.rows, args.width, stage.carry)
        params, state, loss = step(params, state, batch)
        losses.append(loss)
        if i % 100 == 0 or i == stage.steps:
            mean = np.mean([float(x) for x in losses])
            speed = i * args.rows * args.width / (time.time() - start)
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
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
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
# The quickstart's base model

A {millions:.2f}M-parameter character-level Llama made by `scripts/make_quickstart_model.py` (seed
{seed}) so that the whole method can be tried on a laptop's CPU. It is a toy: it adds up rows of
{terms} digits, and does nothing else.

## How it was made
Trained from random weights, first {textbook} steps on textbook dialogues, then {mixed} steps on
a more lifelike mix in which {lazy} of the critics say `ok` without checking and {deaf}
of the refiners repeat the draft against a critique. All questions come from the task's train split;
the held-out questions were never seen. It is deliberately small and briefly trained: answering in
one step is often off by one or two. No noise is added to its samples. The stages of the shipped
weights were not run in one go; the script's first lines say how.

## Prompts (one turn ends at `</s>`)
| role | prompt | a good turn |
| --- | --- | --- |
| generator | `solve\\|3+8+6+9+5+4+2+7\\|` | `=44` |
| verifier | `check\\|3+8+6+9+5+4+2+7\\|=43\\|` | `11,17,26,31,35,37,44:43 low` |
| refiner | `fix\\|3+8+6+9+5+4+2+7\\|=43\\|11,17,26,31,35,37,44:43 low\\|` | `=44` |
| self-correction | `retry\\|3+8+6+9+5+4+2+7\\|=43\\|` | `=44` |
| debate | `debate\\|3+8+6+9+5+4+2+7\\|=43;=44;=44\\|` | `=44` |

## On {probes} held-out questions, sampled at temperature {temperature}
{figures}
"""


def write_directory(folder: Path, params: dict, args: argparse.Namespace, lines: str) -> None:
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
        terms=arithmetic.TERMS,
        textbook=sum(stage.steps for stage in STAGES if not stage.lazy),
        mixed=sum(stage.steps for stage in STAGES if stage.lazy),
        lazy=" then ".join(f"{stage.lazy:.0%}" for stage in STAGES if stage.lazy),
        deaf=f"{STAGES[-1].deaf:.0%}",
        probes=args.probes,
        temperature=args.temperature,
        figures=lines,
    )
    (folder / "README.md").write_text(card)


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


def answers(params: dict, prompts: list[str], seed: int, temperature: float, new: int) -> list[str]:
    """One sampled turn for each prompt."""
    width = max(map(len, prompts))
    ids = np.zeros((len(prompts), width), np.int32)
    start = np.array([width - len(prompt) for prompt in prompts])
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = encode(prompt)
    out = sample(params, ids, start, jax.random.key(seed), temperature, new)
    return [decode(row) for row in np.asarray(out).tolist()]


def figures(params: dict, count: int, temperature: float) -> dict[str, float]:
    """How often each role does its work, on held-out questions and the generator's own drafts."""
    held_out = [arithmetic.make_question(i, 0, "eval") for i in range(count)]
    prompts = [PROMPTS["solve"].format(question=q) for q, _ in held_out]
    draws = [answers(params, prompts, seed, temperature, 6) for seed in range(1, 9)]
    right = [
        arithmetic.is_correct(draft, answer)
        for drafts in draws
        for draft, (_, answer) in zip(drafts, held_out, strict=True)
    ]
    drafts = draws[0]
    turns = [(q, a, d) for (q, a), d in zip(held_out, drafts, strict=True) if d.startswith("=")]
    prompts = [PROMPTS["check"].format(question=q, draft=d) for q, _, d in turns]
    checks = answers(params, prompts, 2, temperature, 32)
    expected = [careful_check(q, int(d[1:])) for q, _, d in turns]
    careful = [(c, e) for c, e in zip(checks, expected, strict=True) if c != "ok"]
    wrong = [(t, e) for t, e in zip(turns, expected, strict=True) if not e.endswith("ok")]
    prompts = [PROMPTS["fix"].format(question=q, draft=d, critique=e) for (q, _, d), e in wrong]
    fixes = answers(params, prompts, 3, temperature, 6)
    corrected = [arithmetic.is_correct(f, t[1]) for f, (t, _) in zip(fixes, wrong, strict=True)]
    return {
        "generator right": float(np.mean(right)),
        "verifier does check": len(careful) / len(turns),
        "and its check is right": float(np.mean([c == e for c, e in careful])),
        "refiner heeds a right check of a wrong draft": float(np.mean(corrected)),
    }


def main() -> None:
    """Trains all stages, writes the directory, prints the figures of the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--probes", type=int, default=500)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()

    params = init_params(jax.random.key(args.seed))
    rng = random.Random(args.seed)
    for stage in STAGES:
        params = train(params, rng, stage, args)

    result = figures(params, args.probes, args.temperature)
    lines = "\n".join(f"- {name}: {value:.1%}" for name, value in result.items())
    print(lines)
    write_directory(args.out, params, args, lines)
    print(f"wrote {args.out}: {sum(f.stat().st_size for f in args.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
