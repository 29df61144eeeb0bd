"""What the cases are made of: a right run in a folder, and ways to break one thing in it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from malt_jax import cli

BASE = Path(cli.__file__).parent / "assets" / "quickstart"
ROWS = [{"id": f"q{i}", "question": f"{i}+{i}=?", "answer": str(2 * i)} for i in range(3)]
HELD_OUT = [{"id": f"e{i}", "question": f"{i}+7=?", "answer": str(i + 7)} for i in range(3)]


class World:
    """A folder with a correct model, questions and config, one of which a case breaks."""

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


LONG = "x" * 300
Make = Callable[[World], list[str]]
"""Breaks something in a world and returns the words after `malt`."""


@dataclass(frozen=True)
class Case:
    """A kind of wrong input: the command line it makes, and words that the message must hold."""

    name: str
    make: Make
    words: tuple[str, ...]
    apart: bool = False
    """Whether the command runs in a process of its own, because of `env` or because it may hang."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment."""


def case(name: str, make: Make, *words: str, apart: bool = False, **env: str) -> Case:
    return Case(name, make, words, apart or bool(env), env)


def flag(*flags: str) -> Make:
    return lambda world: world.command(*flags)


def config(content: str | bytes) -> Make:
    return lambda world: world.with_config(content)


def file(name: str, content: str | bytes, **task: Any) -> Make:
    return lambda world: world.with_file(name, content, **task)


def row(**task: Any) -> Callable[..., Make]:
    return lambda **row: lambda world: world.with_rows(row, **task)


def made(make: Callable[[Path], Any], *flags: str) -> Make:
    """The command after `make` has put something into the world's folder."""

    def build(world: World) -> list[str]:
        make(world.folder)
        return world.command(*(flag.replace("{here}", str(world.folder)) for flag in flags))

    return build


def data(**sections: Any) -> Make:
    """The command with these sections of the config changed."""

    def build(world: World) -> list[str]:
        for name, value in sections.items():
            old = world.data.get(name)
            world.data[name] = old | value if isinstance(old, dict) else value
        return world.command()

    return build


def ablation(**change: Any) -> Make:
    return data(ablations=[{"name": "a", "set": {k.replace("__", "."): change[k] for k in change}}])


def index(**shards: str) -> Make:
    """The model's weights in shards that an index names, in place of the single file."""
    content = json.dumps({"weight_map": shards}).encode()

    def make(world: World) -> list[str]:
        command = world.with_model_file("model.safetensors.index.json", content)
        # Beside the single file, an index is not read.
        Path(world.data["model"]["path"], "model.safetensors").unlink()
        return command

    return make


def json_changes(name: str, **changes: Any) -> Make:
    return lambda world: world.with_json(name, **changes)


def quickstart(*flags: str) -> Make:
    return lambda world: [
        *("run", "--config", "quickstart", "--quiet", "--output-dir", str(world.out), *flags)
    ]


def words(*words: str) -> Make:
    return lambda world: list(words)
