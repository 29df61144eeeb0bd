"""Feeds broken bytes to every parser that reads a stranger's files, and reports what gets through.

    PYTHONPATH=tests python scripts/fuzz.py                       # every target, 60 s each
    PYTHONPATH=tests python scripts/fuzz.py --seconds 600 gguf manifest

A target reads bytes as the program would and may do one of two things: accept them, or refuse them
with `UserError` (parsers of single files: ValueError). Any other exception is a finding, and so is
an input that takes longer than its limit. With atheris (`pip install atheris`) mutations are guided
by coverage of malt_jax, in a process per target; without it hypothesis mutates the seeds. Each
class of findings (exception and last line of malt_jax) is kept once, as a file in `--findings`.

Prints a table of executions and findings and exits 1 if there is a finding. The inputs in
tests/fuzz_findings, one file per finding that was corrected, are seeds, and tests replay them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests/fuzz_findings"
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]

Feed = Callable[[bytes], object]


class TooSlow(BaseException):
    """An input that takes longer than its limit; no parser may catch it."""


@dataclass(frozen=True)
class Target:
    """A parser: `open` gives, for an empty folder, what feeds it bytes, and the seeds."""

    open: Callable[[Path], tuple[Feed, list[bytes]]]
    refusals: tuple[type[Exception], ...] = ()
    """Exceptions by which it refuses, beside `UserError`."""
    seconds: float = 5.0
    """The longest that one input may take."""


def checkpoint_file(name: str, read: Callable[[Path], object]) -> Callable:
    """A file of a tiny checkpoint, whose other files stay as they are."""

    def opened(folder: Path) -> tuple[Feed, list[bytes]]:
        import tiny

        model = tiny.write_model(folder / "model")
        seeds = [(model / name).read_bytes()] if (model / name).exists() else [b"{}"]
        return lambda data: (model / name).write_bytes(data) and read(model), seeds

    return opened


def read_weights(model: Path) -> None:
    from malt_jax.models.checkpoint import Checkpoint

    Checkpoint(model)


def read_config(model: Path) -> None:
    from malt_jax.models.hf_config import read_spec

    read_spec(model)


def read_tokenizer(model: Path) -> None:
    from malt_jax.models.tokenizer import load_tokenizer

    load_tokenizer(model).prompt_ids("1+1=?")


def chat_template(folder: Path) -> tuple[Feed, list[bytes]]:
    from malt_jax.models.chat_template import ChatTemplate, chat_frame

    plain = b"{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    loop = b"{% for i in range(9) %}{{ messages[0]['content'] }}{% endfor %}"
    file = folder / "chat_template.jinja"
    return lambda data: chat_frame(ChatTemplate(data.decode("utf-8", "replace"), file), {}, None), [
        plain,
        loop,
    ]


def manifests(folder: Path) -> tuple[Feed, list[bytes]]:
    from malt_jax.storage import selfsealed
    from malt_jax.storage.schema import parse

    unit = "rounds/000/trees/00000.jsonl"
    whole = {
        "format": 1, "versions": {}, "config_sha256": "0" * 64, "inputs": {"a.jsonl": "0" * 64},
        "model": {"path": "m", "fingerprint": "f"}, "questions": {"train": "t", "eval": "e"},
        "resumed_with": [{}], "stages": {"search/000": {"done": True, "units": [unit]}},
        "artefacts": {unit: {"sha256": "0" * 64, "bytes": 1, "stage": "search/000"}},
    }  # fmt: skip
    return resealed(parse), [json.dumps(whole).encode(), selfsealed.encode(whole)]


def unfinished(folder: Path) -> tuple[Feed, list[bytes]]:
    from malt_jax.storage.unfinished import parse

    whole = {"manifest": "0" * 64, "files": {"eval/malt.jsonl": [["0" * 64, 9]]}}
    return resealed(parse), [json.dumps(whole).encode()]


def resealed(parse: Feed) -> Feed:
    """Feeds bytes as they are and, if they are an object, with a seal that fits them."""
    from malt_jax.storage import selfsealed

    def feed(data: bytes) -> None:
        with contextlib.suppress(ValueError):
            parse(data)
        try:
            content = json.loads(data)
            sealed = selfsealed.encode(content) if isinstance(content, dict) else b""
        except (ValueError, RecursionError):
            return
        parse(sealed)

    return feed


def shards(folder: Path) -> tuple[Feed, list[bytes]]:
    from malt_jax.storage.jsonl import read_lines, recover
    from malt_jax.tree.node import Tree

    path = folder / "shard.jsonl"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        for record in read_lines(path):
            tree = Tree.from_record(record)
            assert sum(map(len, tree.levels)) == len(tree.nodes) == len(tree.weights) - 1
        recover(path)

    return feed, tree_seeds()


def tree_seeds() -> list[bytes]:
    """A shard of a question's tree, written by a search with a tiny model; the same, but ragged."""
    fixed = (KEPT / "seeds/trees.jsonl").read_bytes()
    tree = json.loads(fixed.partition(b"\n")[0])

    # A second draft, with a refinement more, as adaptive branching gives them.
    second = json.loads(json.dumps(tree["nodes"]).replace("/g0", "/g1"))
    nodes = [*tree["nodes"], *second, {**second[-1], "id": f"{second[-1]['id'][:-1]}1"}]
    nodes.sort(key=lambda node: node["id"].count("/"))
    return [fixed, json.dumps({**tree, "nodes": nodes, "ragged": True}).encode() + b"\n"]


def slices(folder: Path) -> tuple[Feed, list[bytes]]:
    from types import SimpleNamespace

    from malt_jax.stages.slices import COST, Slice, _check_tree, read_cost
    from malt_jax.storage.jsonl import read_records
    from malt_jax.tasks.base import Question
    from malt_jax.tree.node import Tree

    one = Slice("slice", SimpleNamespace(path=folder), 1, 1)
    (folder / COST).parent.mkdir(parents=True)
    seeds = tree_seeds()
    first = Tree.from_record(json.loads(seeds[0].partition(b"\n")[0]))
    roles = [SimpleNamespace(name=name) for name in first.roles]
    chain = SimpleNamespace(branches=first.branches, roles=roles)
    question = Question(first.question_id, first.question, first.answer, {})

    def check(record: dict) -> None:
        tree = Tree.from_record(record)
        _check_tree(tree, question, chain, tree.ragged)

    def feed(data: bytes) -> None:
        (folder / COST).write_bytes(data)
        (folder / "shard.jsonl").write_bytes(data)
        from malt_jax.errors import UserError

        with contextlib.suppress(UserError):
            read_cost(one)
        list(read_records(folder / "shard.jsonl", check))

    return feed, [*seeds, b'{"peak_bytes": 1, "seconds": 2.0}']


def gguf_file(folder: Path) -> tuple[Feed, list[bytes]]:
    import convert_gguf
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(folder / "seed.gguf", "llama")
    for name, value in {
        "context_length": 8, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
        "head_count": 2,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([b"a", b"b", b"ab"])
    writer.add_token_types([1, 1, 1])
    writer.add_token_merges([b"a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def feed(data: bytes) -> None:
        (folder / "fuzzed.gguf").write_bytes(data)
        with tempfile.TemporaryDirectory(dir=folder) as out:
            convert_gguf.convert(folder / "fuzzed.gguf", Path(out, "model"), "float32")

    return feed, [(folder / "seed.gguf").read_bytes()]


def adapters(name: str) -> Callable:
    def opened(folder: Path) -> tuple[Feed, list[bytes]]:
        import numpy as np
        from safetensors.numpy import save_file

        import tiny
        from malt_jax.models.adapters import load_adapter
        from malt_jax.models.hf_config import read_spec

        spec = read_spec(tiny.write_model(folder / "model"))
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        shapes = {"A": (2, 32), "B": (32, 2)}
        tensors = {
            prefix.format(layer, side): np.ones(shape, np.float32)
            for layer in range(2)
            for side, shape in shapes.items()
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        seeds = [(folder / name).read_bytes()]
        return lambda data: (folder / name).write_bytes(data) and load_adapter(folder, spec), seeds

    return opened


def task_file(suffix: str) -> Callable:
    def opened(folder: Path) -> tuple[Feed, list[bytes]]:
        from malt_jax.tasks import get_task

        path = folder / f"rows{suffix}"
        rows = [{"question": "1+1=?", "answer": "2", "id": "a"}, {"question": "é", "answer": "3"}]
        if suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            seed = path.read_bytes()
        elif suffix == ".csv":
            seed = b'question,answer,id\n"1+1=?",2,a\n'
        else:
            seed = "\n".join(map(json.dumps, rows)).encode()
        tasks = [get_task("custom"), get_task("gsm8k")]

        def feed(data: bytes) -> None:
            from malt_jax.errors import UserError

            path.write_bytes(data)
            for task in tasks:
                with contextlib.suppress(UserError):
                    task.load("train", str(path), None, None)

        return feed, [seed]

    return opened


def grader(name: str) -> Callable:
    def opened(folder: Path) -> tuple[Feed, list[bytes]]:
        from malt_jax.tasks.base import Question
        from malt_jax.tasks.graders import get_grader

        made = get_grader(name)
        question = Question("q", "What?", "12", {"choices": {"A": "one", "B": "two"}})

        def feed(data: bytes) -> None:
            made.grade([data.decode("utf-8", "replace")], [question])

        return feed, [
            b"#### 1,234.50", b"The answer is \\boxed{\\frac{3}{4}}.", b"so (B) is right",
            b"{1, 2} and **three**", "١٢ оr twelve thousand".encode(),
        ]  # fmt: skip

    return opened


TARGETS = {
    "safetensors": Target(checkpoint_file("model.safetensors", read_weights)),
    "config": Target(checkpoint_file("config.json", read_config)),
    "tokenizer": Target(checkpoint_file("tokenizer.json", read_tokenizer)),
    "tokenizer_config": Target(checkpoint_file("tokenizer_config.json", read_tokenizer)),
    "chat_template": Target(chat_template, seconds=60),
    "manifest": Target(manifests, (ValueError,)),
    "unfinished": Target(unfinished, (ValueError,)),
    "shard": Target(shards, (ValueError,)),
    "slice": Target(slices),
    "gguf": Target(gguf_file),
    "adapter_config": Target(adapters("adapter_config.json")),
    "adapter_weights": Target(adapters("adapter_model.safetensors")),
    **{f"task{suffix}": Target(task_file(suffix)) for suffix in (".jsonl", ".csv", ".parquet")},
    **{
        f"grader.{name}": Target(grader(name), seconds=20 if name == "latex" else 5)
        for name in ("number", "choice", "exact", "set", "latex")
    },
}


def attempt(target: Target, feed: Feed, data: bytes) -> str | None:
    """Feeds one input; the class of the finding, if it is one: the exception and its place."""
    from malt_jax.errors import UserError

    def alarm(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, target.seconds)
    try:
        feed(data)
    except (UserError, *target.refusals):
        return None
    except (Exception, TooSlow) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "malt_jax" in f.filename or "convert_gguf" in f.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "elsewhere"
        return f"{type(error).__name__} in {where}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None


def kept(name: str) -> list[bytes]:
    """The inputs of earlier findings of a target."""
    return [path.read_bytes() for path in sorted((KEPT / name).glob("*"))]


def mutations(seeds: list[bytes]) -> object:
    """A hypothesis strategy: seeds with pieces replaced, removed, repeated or moved."""
    from hypothesis import strategies as st

    def mutate(seed: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
        data = bytearray(seed)
        for at, length, piece in cuts:
            start = at % (len(data) + 1)
            data[start : start + length] = piece
        return bytes(data)

    tokens = [b"{", b"}", b"[]", b"null", b"-1", b"1e999", b'"', b"9" * 30, b"\0", b"\xff", b"NaN"]
    piece = st.binary(max_size=8) | st.sampled_from([*tokens, *(seed[:200] for seed in seeds)])
    cut = st.tuples(st.integers(0, 1 << 16), st.integers(0, 12), piece)
    return st.builds(mutate, st.sampled_from(seeds), st.lists(cut, min_size=1, max_size=4))


def work(name: str, seconds: float, findings: Path) -> None:
    """Fuzzes one target in this process; findings and the number of executions become files."""
    try:
        import atheris
    except ImportError:
        atheris = None
    guided = atheris.instrument_imports(include=["malt_jax", "convert_gguf"]) if atheris else None
    with guided or contextlib.nullcontext():
        target = TARGETS[name]
        folder = Path(tempfile.mkdtemp(prefix="malt-fuzz-"))
        feed, seeds = target.open(folder)
        seeds += kept(name)
        for seed in seeds:  # imports everything that reading needs
            attempt(target, feed, seed)
    seen: set[str] = set()
    executions, until = 0, time.monotonic() + seconds

    def one(data: bytes) -> None:
        nonlocal executions
        executions += 1
        found = attempt(target, feed, data)
        if found and found not in seen:
            seen.add(found)
            digest = hashlib.sha256(data).hexdigest()[:12]
            (findings / f"{name}-{digest}").write_bytes(data)
            with (findings / f"{name}.txt").open("a") as file:
                file.write(f"{digest} {found}\n")
        if executions % 20 == 0 or found:
            (findings / f"{name}.count").write_text(str(executions))

    if atheris:
        corpus = folder / "corpus"
        corpus.mkdir()
        for index, seed in enumerate(seeds):
            (corpus / str(index)).write_bytes(seed)
        limits = [f"-max_total_time={int(seconds)}", "-rss_limit_mb=4096", "-timeout=120"]
        atheris.Setup([sys.argv[0], *limits, "-verbosity=0", str(corpus)], one)
        atheris.Fuzz()
        return
    from hypothesis import HealthCheck, given, settings

    everything = settings(
        max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    while time.monotonic() < until:
        everything(given(mutations(seeds))(one))()


def report(names: list[str], seconds: float, findings: Path) -> Iterator[tuple[str, int, list]]:
    """Fuzzes each target in a process of its own, because a crash of a library ends it."""
    for name in names:
        command = [sys.executable, __file__, name, "--worker", "--seconds", str(seconds)]
        done = subprocess.run(
            [*command, "--findings", str(findings)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        count, text = findings / f"{name}.count", findings / f"{name}.txt"
        found = text.read_text().splitlines() if text.exists() else []
        if done.returncode:
            found.append(f"the process ended with {done.returncode}: {done.stderr[-300:]}")
        yield name, int(count.read_text()) if count.exists() else 0, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=60, help="per target [60]")
    parser.add_argument("--findings", type=Path, help="folder for them; default: a temporary one")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(unknown)}; choose from {', '.join(TARGETS)}")
    findings = options.findings or Path(tempfile.mkdtemp(prefix="malt-findings-"))
    findings.mkdir(parents=True, exist_ok=True)
    if options.worker:
        work(options.targets[0], options.seconds, findings)
        return 0
    print("| target | executions | findings |\n| --- | ---: | --- |", flush=True)
    bad = False
    names = options.targets or list(TARGETS)
    for name, executions, found in report(names, options.seconds, findings):
        bad = bad or bool(found)
        print(f"| {name} | {executions:,} | {'; '.join(found) or 'none'} |", flush=True)
    print(f"\ninputs of findings: {findings}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
