"""Wrong inputs of every kind, and what `malt` must say to each: see reliability_inputs.py."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from malt_jax import cli

BASE = Path(cli.__file__).parent / "assets" / "quickstart"
ROWS = [{"id": f"q{i}", "question": f"{i}+{i}=?", "answer": str(2 * i)} for i in range(3)]
HELD_OUT = [{"id": f"e{i}", "question": f"{i}+7=?", "answer": str(i + 7)} for i in range(3)]


class World:
    """A folder with a right model, questions and config, of which a case breaks one."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "run"
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
        self.data: dict[str, Any] = {
            "model": {"path": "quickstart"},
            "task": {
                "name": "custom",
                "grader": "number",
                "train_path": str(folder / "train.jsonl"),
                "eval_path": str(folder / "eval.jsonl"),
            },
            "pipeline": {
                "roles": [
                    {"name": name, "template": f"{{question}}{before}=", "max_new_tokens": 8}
                    for name, before in (("first", ""), ("second", "{first}"))
                ]
            },
            "eval": {"systems": ["sa", "ma", "malt"], "baseline": "sa@3"},
            "output_dir": str(self.out),
        }

    def command(self, *flags: str, name: str = "run") -> list[str]:
        path = self.folder / "config.yaml"
        if not path.exists():
            path.write_text(yaml.safe_dump(self.data))
        return [name, "--config", str(path), "--quiet", *flags]

    def with_config(self, content: str | bytes) -> list[str]:
        """The command with this text as the config file."""
        data = content if isinstance(content, bytes) else content.encode()
        (self.folder / "config.yaml").write_bytes(data)
        return self.command("--output-dir", str(self.out))

    def with_file(self, name: str, content: str | bytes, **task: Any) -> list[str]:
        """The command with this file as the training questions."""
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (self.folder / name).write_bytes(data)
        self.data["task"] |= {"train_path": str(self.folder / name), **task}
        return self.command()

    def with_rows(self, *rows: dict[str, Any], **task: Any) -> list[str]:
        """The command with these rows after the right ones."""
        lines = [json.dumps(row) for row in (*ROWS, *rows)]
        return self.with_file("rows.jsonl", "\n".join(lines) + "\n", **task)

    def model(self) -> Path:
        """A copy of the embedded model, used from now on."""
        folder = self.folder / "model"
        shutil.copytree(BASE, folder)
        self.data["model"]["path"] = str(folder)
        return folder

    def with_json(self, name: str, **changes: Any) -> list[str]:
        """The command with fields of one of the model's JSON files changed; None removes one."""
        path = self.model() / name
        data = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
        return self.command()

    def with_model_file(self, name: str, content: bytes | None) -> list[str]:
        """The command with one of the model's files replaced, or removed."""
        path = self.model() / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        return self.command()

    def with_header(self, change: Callable[[dict[str, Any]], None]) -> list[str]:
        """The command with the header of the safetensors file changed."""
        path = self.model() / "model.safetensors"
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
        return self.command()

    def with_tensors(self, change: Callable[[dict[str, np.ndarray]], Any]) -> list[str]:
        """The command with tensors of the model changed."""
        from safetensors.numpy import load_file, save_file

        path = self.model() / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        return self.command()


@dataclass(frozen=True)
class Case:
    """One kind of wrong input: what it is, the command line it makes, words the message holds."""

    name: str
    make: Callable[[World], list[str]]
    words: tuple[str, ...]


def case(name: str, make: Callable[[World], list[str]], *words: str) -> Case:
    return Case(name, make, words)


def _flag(*flags: str) -> Callable[[World], list[str]]:
    return lambda world: world.command(*flags)


def _config(content: str | bytes) -> Callable[[World], list[str]]:
    return lambda world: world.with_config(content)


def _file(name: str, content: str | bytes, **task: Any) -> Callable[[World], list[str]]:
    return lambda world: world.with_file(name, content, **task)


def _row(**task: Any) -> Callable[..., Callable[[World], list[str]]]:
    return lambda **row: lambda world: world.with_rows(row, **task)


def _made(make: Callable[[Path], Any], *flags: str) -> Callable[[World], list[str]]:
    """The command after `make` has put something into the world's folder."""

    def build(world: World) -> list[str]:
        make(world.folder)
        return world.command(*(flag.replace("{here}", str(world.folder)) for flag in flags))

    return build


def _aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


def _parquet(folder: Path) -> None:
    (folder / "q.parquet").write_bytes(b"PAR1" + b"\x15" * 400 + b"PAR1")


def _first(tensors: dict[str, np.ndarray], value: float) -> None:
    name = sorted(tensors)[3]
    tensors[name] = tensors[name].copy()
    tensors[name].flat[5] = value


CONFIGS = (
    case(
        "config: no such file", lambda w: ["run", "--config", str(w.folder / "no.yaml")], "no.yaml"
    ),
    case("config: a folder", lambda w: ["run", "--config", str(w.folder)], "cannot be read"),
    case("config: Latin-1", _config("task: {name: \xe9}".encode("latin-1")), "UTF-8"),
    case("config: NUL byte", _config(b"seed: 1\0"), "config.yaml"),
    case("config: a list", _config("- 1\n"), "mapping"),
    case("config: torn YAML", _config("task: {name"), "config.yaml:", "not valid YAML"),
    case("config: a key twice", _config("seed: 1\nseed: 2\n"), ":2", "twice"),
    case("config: aliases that multiply", _config(_aliases()), "config.yaml:", "alias"),
    case("config: an alias of itself", _config("ablations: &a [*a]\n"), "config.yaml:", "alias"),
    case("config: a Python object", _config("seed: !!python/name:os.system\n"), "not valid YAML"),
    case("config: nested 2,000 deep", _config("[" * 2000), "config.yaml"),
    case("config: unknown field", _config("sead: 1\n"), "sead", "seed"),
    case("config: a date for a number", _config("seed: 2020-01-01\n"), "seed", "whole number"),
    case(
        "config: NaN", _flag("--train.sft.optim.learning-rate", ".nan"), "learning_rate", "finite"
    ),
    case("config: infinity", _flag("--search.softness", ".inf"), "softness", "finite"),
    case("config: negative", _flag("--task.num-train", "-3"), "num_train", "1 or more"),
    case("config: zero rounds", _flag("--rounds", "0"), "rounds", "1 to 100"),
    case("config: 10^30", _flag("--train.sft.batch-size", "1" + "0" * 30), "batch_size", "64-bit"),
    case("config: 10^5000", _flag("--seed", "1" + "0" * 5000), "seed"),
    case("config: 1e999", _flag("--train.dpo.beta", "1e999"), "beta", "finite"),
    case("config: text for a number", _flag("--seed", "ten"), "seed", "whole number"),
    case("config: true for a number", _flag("--seed", "true"), "seed", "whole number"),
    case("config: negative seed", _flag("--seed", "-1"), "seed", "0 to 2^32"),
    case("config: an unknown choice", _flag("--sharing", "adapter"), "sharing", "adapters"),
    case("config: no roles", _config("pipeline: {roles: []}\n"), "roles", "none"),
    case(
        "config: a role twice",
        _config("pipeline: {roles: [{name: a}, {name: a}]}\n"),
        "roles",
        "twice",
    ),
    case("config: a role named ../x", _flag("--pipeline.roles.0.name", "../x"), "roles.0.name"),
    case(
        "config: an unknown placeholder",
        _flag("--pipeline.roles.0.template", "{question} {second}"),
        "roles.0.template",
        "second",
    ),
    case("config: shard 3/2", _flag("--search.shard", "3/2"), "shard", "i/k"),
    case("config: falling buckets", _flag("--sampler.prefix-buckets", "64,32"), "prefix_buckets"),
    case("config: an unknown system", _flag("--eval.systems", "sa,magic"), "magic"),
    case("config: an unknown baseline", _flag("--eval.baseline", "best"), "eval.baseline"),
    case(
        "config: more new tokens than context",
        _flag("--pipeline.roles.0.max-new-tokens", "4096"),
        "roles.0.max_new_tokens",
    ),
    case("config: an unknown task", _flag("--task.name", "gsm9k"), "task.name", "gsm8k"),
    case("config: a task that cannot be imported", _flag("--task.name", "no_such:T"), "task.name"),
    case("config: code is not allowed", _flag("--task.name", "mbpp"), "allow_code"),
    case("config: an unknown grader", _flag("--task.grader", "nose"), "nose"),
    case("config: an unknown flag", _flag("--task.nun-train", "3"), "nun", "num_train"),
    case("config: a word too many", lambda w: ["run", "now", *w.command()[1:]], "now"),
    case("no such command", lambda w: ["rum"], "rum", "run"),
)

FILES = (
    case("questions: no such file", _flag("--task.train-path", "no.jsonl"), "no.jsonl", "no such"),
    case(
        "questions: a folder",
        _made(lambda f: (f / "d.jsonl").mkdir(), "--task.train-path", "{here}/d.jsonl"),
        "d.jsonl",
    ),
    case(
        "questions: a pipe",
        _made(lambda f: os.mkfifo(f / "p.jsonl"), "--task.train-path", "{here}/p.jsonl"),
        "p.jsonl",
    ),
    case(
        "questions: an endless device",
        _made(
            lambda f: (f / "z.jsonl").symlink_to("/dev/zero"), "--task.train-path", "{here}/z.jsonl"
        ),
        "z.jsonl",
    ),
    case("questions: an unknown ending", _file("q.txt", "1+1=?"), "q.txt", ".jsonl"),
    case("questions: empty file", _file("q.jsonl", ""), "q.jsonl", "no questions"),
    case("questions: blank lines only", _file("q.jsonl", "\n\n  \n"), "no questions"),
    case("questions: a column is missing", _row()(id="x", question="1+1=?"), "line 4", "answer"),
    case("questions: an empty question", _row()(question=" ", answer="1"), "line 4", "empty"),
    case("questions: null", _row()(question=None, answer="1"), "line 4", "null"),
    case("questions: a list for a text", _row()(question=["1"], answer="1"), "line 4", "a list"),
    case("questions: NUL character", _row()(question="1\0", answer="1"), "line 4", "NUL"),
    case("questions: NUL byte", _file("q.jsonl", b'{"question": "\0"}'), "line 1", "NUL"),
    case("questions: lone surrogate", _row()(question="\ud800", answer="1"), "line 4", "surrogate"),
    case("questions: Latin-1", _file("q.jsonl", b'{"question": "\xe9"}'), "line 1", "UTF-8"),
    case("questions: UTF-16", _file("q.jsonl", '{"a": 1}'.encode("utf-16")), "UTF-16"),
    case(
        "questions: a byte-order mark, then nothing",
        _file("q.jsonl", b"\xef\xbb\xbf"),
        "no questions",
    ),
    case("questions: compressed", _file("q.jsonl", b"\x1f\x8b\x08\x00" + b"\xf3" * 40), "q.jsonl"),
    case(
        "questions: a line of 10 MB", _file("q.jsonl", b"[" + b"1," * 5_100_000), "line 1", "longer"
    ),
    case("questions: a torn line", _file("q.jsonl", '{"question": "1'), "line 1", "not JSON"),
    case("questions: one array", _file("q.jsonl", json.dumps(ROWS)), "line 1", "jq"),
    case("questions: NaN", _file("q.jsonl", '{"question": "a", "answer": NaN}'), "line 1", "NaN"),
    case("questions: a name twice", _file("q.jsonl", '{"a": 1, "a": 2}'), "line 1", "twice"),
    case("questions: nested 5,000 deep", _file("q.jsonl", '{"a": ' + "[" * 5000), "line 1"),
    case("questions: an id twice", _row()(**ROWS[0]), "line 4", "stands at"),
    case(
        "questions: an id of 300 characters", _row()(id="x" * 300, question="a", answer="1"), "200"
    ),
    case("questions: an answer that does not parse", _row()(question="a", answer="six"), "line 4"),
    case(
        "questions: an answer that is no choice",
        _file(
            "q.jsonl",
            json.dumps({"question": "a", "answer": "1", "choices": ["x", "y"]}),
            grader="choice",
        ),
        "line 1",
    ),
    case(
        "questions: more than one file's worth", _flag("--task.num-train", "99"), "num_train", "99"
    ),
    case(
        "questions: trained on and evaluated on",
        _row()(question=HELD_OUT[0]["question"], answer="1"),
        "evaluation",
    ),
    case(
        "questions: longer than the context",
        _row()(question="1+" * 300 + "1", answer="1"),
        "tokens",
    ),
    case(
        "questions: CSV with a cell too few",
        _file("q.csv", "question,answer\n1+1\n"),
        "row 1",
        "header",
    ),
    case("questions: CSV with a column twice", _file("q.csv", "question,question\n1,2\n"), "twice"),
    case(
        "questions: CSV with an open quote", _file("q.csv", 'question,answer\n"1+1,2\n'), "not CSV"
    ),
    case(
        "questions: damaged Parquet",
        _made(_parquet, "--task.train-path", "{here}/q.parquet"),
        "Parquet",
    ),
)

MODELS = (
    case("model: no such folder", _flag("--model.path", "/no/such"), "model.path", "no such"),
    case(
        "model: a folder without config.json",
        _made(lambda f: (f / "m").mkdir(), "--model.path", "{here}/m"),
        "config.json",
    ),
    case(
        "model: config.json is no JSON",
        lambda w: w.with_model_file("config.json", b"{"),
        "config.json",
    ),
    case(
        "model: unknown family",
        lambda w: w.with_json("config.json", model_type="rwkv"),
        "model_type",
    ),
    case(
        "model: code of its own",
        lambda w: w.with_json("config.json", auto_map={"a": "b"}),
        "auto_map",
    ),
    case(
        "model: quantised",
        lambda w: w.with_json("config.json", quantization_config={"bits": 4}),
        "quantization_config",
    ),
    case(
        "model: mixture of experts",
        lambda w: w.with_json("config.json", num_local_experts=8),
        "experts",
    ),
    case(
        "model: a vocabulary of 10^18",
        lambda w: w.with_json("config.json", vocab_size=10**18),
        "vocab_size",
    ),
    case(
        "model: a negative width",
        lambda w: w.with_json("config.json", hidden_size=-4),
        "hidden_size",
    ),
    case("model: an odd head", lambda w: w.with_json("config.json", head_dim=31), "head_dim"),
    case(
        "model: unknown rope",
        lambda w: w.with_json("config.json", rope_parameters={"rope_type": "yarn"}),
        "yarn",
    ),
    case(
        "model: a layer too many",
        lambda w: w.with_json("config.json", num_hidden_layers=5),
        "missing",
    ),
    case(
        "model: a layer too few",
        lambda w: w.with_json("config.json", num_hidden_layers=3),
        "no part",
    ),
    case(
        "model: another width", lambda w: w.with_json("config.json", intermediate_size=256), "shape"
    ),
    case("model: no weights", lambda w: w.with_model_file("model.safetensors", None), "no weights"),
    case("model: a pickle", lambda w: _pickle(w), "pickle"),
    case(
        "model: weights cut short",
        lambda w: w.with_model_file(
            "model.safetensors", (BASE / "model.safetensors").read_bytes()[:-100]
        ),
        "model.safetensors",
    ),
    case(
        "model: empty weights",
        lambda w: w.with_model_file("model.safetensors", b""),
        "model.safetensors",
    ),
    case(
        "model: a header of 2^60 bytes",
        lambda w: w.with_model_file("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        "model.safetensors",
    ),
    case(
        "model: a header that is no JSON",
        lambda w: w.with_model_file("model.safetensors", struct.pack("<Q", 4) + b"{{{{"),
        "model.safetensors",
    ),
    case(
        "model: a header with offsets past the end",
        lambda w: w.with_header(lambda h: h["lm_head.weight"].update(data_offsets=[0, 1 << 50])),
        "model.safetensors",
    ),
    case(
        "model: a header with overlapping tensors",
        lambda w: w.with_header(
            lambda h: h[sorted(h)[2]].update(data_offsets=h[sorted(h)[1]]["data_offsets"])
        ),
        "model.safetensors",
    ),
    case(
        "model: a header with another shape",
        lambda w: w.with_header(lambda h: h["lm_head.weight"].update(shape=[32, 256])),
        "lm_head.weight",
    ),
    case(
        "model: whole numbers for weights",
        lambda w: w.with_header(lambda h: h["lm_head.weight"].update(dtype="I32")),
        "I32",
    ),
    case("model: NaN in a weight", lambda w: w.with_tensors(lambda t: _first(t, np.nan)), "NaN"),
    case(
        "model: infinity in a weight",
        lambda w: w.with_tensors(lambda t: _first(t, np.inf)),
        "infinity",
    ),
    case(
        "model: a tensor is missing",
        lambda w: w.with_tensors(lambda t: t.pop("model.norm.weight")),
        "model.norm.weight",
    ),
    case(
        "model: a tensor too many",
        lambda w: w.with_tensors(lambda t: t.update(extra=np.ones(3, np.float32))),
        "extra",
    ),
    case(
        "model: an index that leaves the folder",
        lambda w: w.with_model_file(
            "model.safetensors.index.json", b'{"weight_map": {"a": "../x.safetensors"}}'
        ),
        "same folder",
    ),
    case(
        "model: an index to nowhere",
        lambda w: w.with_model_file(
            "model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}'
        ),
        "b.safetensors",
    ),
    case("tokenizer: missing", lambda w: w.with_model_file("tokenizer.json", None), "tokenizer"),
    case(
        "tokenizer: damaged",
        lambda w: w.with_model_file("tokenizer.json", b'{"version": "1.0"'),
        "tokenizer",
    ),
    case("tokenizer: larger than the embedding", lambda w: _larger_tokenizer(w), "tokenizer"),
    case(
        "tokenizer: an end token it lacks",
        lambda w: w.with_json("generation_config.json", eos_token_id=999),
        "999",
    ),
    case(
        "chat template: without end",
        lambda w: w.with_json(
            "tokenizer_config.json", chat_template="{% for i in range(10**9) %}x{% endfor %}"
        ),
        "chat template",
    ),
    case(
        "chat template: reaches for Python",
        lambda w: w.with_json("tokenizer_config.json", chat_template="{{ ''.__class__.__mro__ }}"),
        "chat template",
    ),
    case(
        "chat template: drops the message",
        lambda w: w.with_json("tokenizer_config.json", chat_template="hello"),
        "chat template",
    ),
    case(
        "chat template: does not parse",
        lambda w: w.with_json("tokenizer_config.json", chat_template="{% if"),
        "chat template",
    ),
)


LONG = "x" * 300


def _data(**sections: Any) -> Callable[[World], list[str]]:
    """The command with these sections of the config changed."""

    def build(world: World) -> list[str]:
        for name, value in sections.items():
            old = world.data.get(name)
            world.data[name] = old | value if isinstance(old, dict) else value
        return world.command()

    return build


def _ablation(**change: Any) -> Callable[[World], list[str]]:
    return _data(
        ablations=[{"name": "a", "set": {k.replace("__", "."): change[k] for k in change}}]
    )


def _index(**shards: str) -> Callable[[World], list[str]]:
    content = json.dumps({"weight_map": shards}).encode()
    return lambda world: world.with_model_file("model.safetensors.index.json", content)


def _json(name: str, **changes: Any) -> Callable[[World], list[str]]:
    return lambda world: world.with_json(name, **changes)


def _quickstart(*flags: str) -> Callable[[World], list[str]]:
    return lambda world: [
        *("run", "--config", "quickstart", "--quiet", "--output-dir", str(world.out), *flags)
    ]


def _words(*words: str) -> Callable[[World], list[str]]:
    return lambda world: list(words)


def _one_row_a_million_times(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def same(text: str) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(30_000, np.int32)), [text])

    table = pa.table({"question": same("a" * 1_000_000), "answer": same("1")})
    pq.write_table(table, folder / "q.parquet")


def _no_words(world: World) -> list[str]:
    model = {"type": "WordLevel", "vocab": {}, "unk_token": "x"}
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    data = {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(parts)
    return world.with_model_file("tokenizer.json", json.dumps(data).encode())


LATER = (
    case("later: a shard without questions", _flag("--search.shard", "1/100"), "search.shard"),
    case("later: a mesh of seven devices", _flag("--mesh.data", "7"), "mesh", "7"),
    case("later: a tracker that is not there", _flag("--trackio", "true"), "trackio"),
    case("later: a grader nobody asks", _quickstart("--task.grader", "set"), "task.grader"),
    case("later: a revision of no hub", _quickstart("--model.revision", "x"), "revision"),
    case("later: a model of a variant", _ablation(model__path="/no/such"), "ablations.a", "/no"),
    case(
        "later: a turn of a variant",
        _ablation(pipeline__roles__0__max_new_tokens=4096),
        "ablations.a",
        "max_new_tokens",
    ),
    case(
        "later: a role named as a folder of storage",
        _flag("--pipeline.roles.0.name", "_x"),
        "roles.0.name",
    ),
    case("later: a model path of 300 letters", _flag("--model.path", LONG), "model.path"),
    case(
        "later: a question path of 300 letters",
        _flag("--task.train-path", f"{LONG}.jsonl"),
        "task.train_path",
    ),
    case("later: an output of 300 letters", _words("init", "gsm8k", "m", "--output", LONG), "xxx"),
    case("later: init of no model", _words("init", "gsm8k", ""), "model.path"),
    case("later: a task of Python's own", _data(task={"name": "os:abort", "grader": None}), "os"),
    case(
        "later: only characters of no width",
        _row()(question="\u200b", answer="1"),
        "line 4",
        "empty",
    ),
    case(
        "later: Parquet that repeats itself",
        _made(_one_row_a_million_times, "--task.train-path", "{here}/q.parquet"),
        "bytes",
    ),
    case("later: a shard's name of 300 letters", _index(a=f"{LONG}.safetensors"), "missing"),
    case("later: a line break in a tensor's name", _index(**{"a\nb": "c"}), "a b"),
    case(
        "later: layer types in lists", _json("config.json", layer_types=[["x"]] * 4), "layer_types"
    ),
    case("later: a number that is a book", _json("config.json", hidden_size=LONG * 300), "xx..."),
    case(
        "later: a key twice",
        lambda w: w.with_model_file(
            "config.json",
            (BASE / "config.json").read_bytes().replace(b"{", b'{"model_type": 1,', 1),
        ),
        "model_type",
        "twice",
    ),
    case("later: no end token", _json("generation_config.json", eos_token_id=[]), "eos_token_id"),
    case("later: a tokenizer without words", _no_words, "tokenizer"),
    case("later: 5 for a template", _json("tokenizer_config.json", chat_template=5), "text"),
    case(
        "later: a template with half a character",
        _json(
            "tokenizer_config.json",
            chat_template="{{ '\\ud800' }}{{ messages[-1]['content'] }}",
        ),
        "model.path",
        "surrogate",
    ),
    case(
        "later: too many chips",
        _words("plan", "--config", "quickstart", "--topology", f"h100:{9**30}"),
        "chips",
    ),
    case("later: branches below none", _words("bench", "sampler", "--branch", "-1"), "--branch"),
    case("later: a stage of no bench", _words("bench", "train", "--stage", "nope"), "sft, dpo"),
    case("later: one step to time", _words("bench", "train", "--steps", "1"), "--steps"),
    case(
        "later: more new tokens than the bench's model reads",
        _words("bench", "sampler", "--model.path", "quickstart", "--max-new-tokens", "100000"),
        "context of 256",
    ),
)
"""What used to be found when its turn came, or not at all."""


def _pickle(world: World) -> list[str]:
    command = world.with_model_file("model.safetensors", None)
    (world.folder / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return command


def _larger_tokenizer(world: World) -> list[str]:
    folder = world.model()
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"]["\u00e9"] = 70
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return world.command()


def _of_another_run(world: World) -> list[str]:
    """A run directory whose config differs in one field."""
    from malt_jax import config
    from malt_jax.config import reading
    from malt_jax.storage.rundir import RunDir

    made = config.load(world.command("--seed", "1")[2], ["--seed", "1"])
    RunDir.open(world.out, reading.to_dict(made), "malt run").close()
    return world.command()


RUNS = (
    case("run directory: is a file", _made(lambda f: (f / "run").write_text("mine")), "is a file"),
    case(
        "run directory: holds something else",
        _made(lambda f: ((f / "run").mkdir(), (f / "run/thesis.tex").write_text("mine"))),
        "thesis.tex",
    ),
    case(
        "run directory: beneath a file",
        _made(lambda f: (f / "file").write_text("mine"), "--output-dir", "{here}/file/run"),
        "file",
    ),
    case(
        "run directory: a name of 300 characters",
        _flag("--output-dir", "/tmp/" + "x" * 300),
        "shorter",
    ),
    case("run directory: of another config", _of_another_run, "seed was 1 and is now 0"),
    case(
        "run directory: a manifest of nonsense",
        _made(lambda f: ((f / "run").mkdir(), (f / "run/manifest.json").write_text("{}"))),
        "manifest",
    ),
    case(
        "redo of no stage",
        lambda w: [*_of_another_run(w), "--seed", "1", "--redo", "searh"],
        "searh",
    ),
    case("label before search", lambda w: ["label", *w.command()[1:]], "search/000"),
    case("ask of what is no run", lambda w: ["ask", "1+1?", "--run", str(w.folder)], "not a run"),
    case(
        "ask with no votes",
        lambda w: ["ask", "1+1?", "--run", str(w.folder), "--votes", "x"],
        "votes",
    ),
    case(
        "report of what is no run", lambda w: ["report", "--output-dir", str(w.folder)], "not a run"
    ),
    case(
        "init over a file",
        lambda w: ["init", "gsm8k", "org/model", "--output", str(w.folder / "train.jsonl")],
        "exists",
    ),
    case("init of an unknown task", lambda w: ["init", "gsm9k", "org/model"], "gsm8k"),
    case(
        "plan for an unknown slice",
        lambda w: ["plan", *w.command()[1:], "--topology", "v9x:1x1"],
        "v9x",
    ),
)

CASES = (*CONFIGS, *FILES, *MODELS, *RUNS, *LATER)
