"""Every command, file and snippet in the documentation is run, and every name in it exists.

A code block that begins with `# file: NAME` is written to that file; any other Python is run.
Commands that would take long are run with `--dry-run`, and plans without compiling. Any model's
hub name stands for a random one of a few kilobytes, and a run that is asked for one of that model.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import openai
import pytest

import cli_run
from malt_jax import cli
from malt_jax.commands.command import parse
from malt_jax.tasks.base import Question
from test_serving import served

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LONG = ("run", "search", "label", "train", "eval", "export", "report")
PARSED_ONLY = ("bench", "serve")
"""Commands that take minutes, or do not end; `test_bench` and `test_serving` run them."""


@pytest.fixture(scope="module")
def model() -> Path:
    return cli_run.model()


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text())


def malt_commands(text: str) -> list[list[str]]:
    """The words of every `malt` command in a shell block."""
    joined = text.replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["malt"]]


def ids(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_and_files_of_a_page_work_in_order(page, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs", dirs_exist_ok=True)
    monkeypatch.setattr("malt_jax.models.hub.local_folder", lambda *_: (model, None))
    monkeypatch.setattr("malt_jax.tasks.loading.from_hub", _hub, raising=False)
    monkeypatch.setattr("malt_jax.stages.session.load_split", _split(tmp_path))
    monkeypatch.setattr("malt_jax.planning.chips._tpu_devices", lambda _: None)  # needs libtpu
    # In place of XLA's compiler for GPUs.
    monkeypatch.setattr("malt_jax.planning.chips.described_gpus", lambda *_: None)
    monkeypatch.setattr("malt_jax.planning.plan.measure_all", _figures)
    commands = {command.name: command for command in cli.all_commands()}
    for kind, text in blocks(page):
        if found := re.match(r"# file: (\S+)\n", text):
            Path(found[1]).write_text(text[found.end() :])
        if kind != "sh":
            continue
        for name, *words in malt_commands(text):
            if name in PARSED_ONLY:
                parse(commands[name], words)
                continue
            words = on_a_run(name, words)
            dry = ["--dry-run"] if name in LONG and "--dry-run" not in words else []
            status = cli.main([name, *words, *dry])
            assert status == 0, f"malt {name} {' '.join(words)}: {capsys.readouterr().err}"


def on_a_run(name: str, words: list[str]) -> list[str]:
    """A command that works on what a run has made by then, on one with a task of the tests."""
    trained = str(cli_run.trained())
    if "--run" in words:
        words[words.index("--run") + 1] = trained
        if name == "eval" and not {"--name", "--tasks"} & {
            *words
        }:  # the table of what is evaluated
            assert cli.main(["eval", *cli_run.flags()]) == 0
    elif name in ("label", "train", "export"):
        words[words.index("--output-dir") + 1] = trained
        at = words.index("--config")
        del words[at : at + 2]
    else:
        return words
    return [*words, "--trust-task-code"]


def _figures(programs, *_, **__):
    """In place of tracing and compiling, which `test_plan` does."""
    figures = {"flops": 1e12, "arguments": 1 << 30, "compiled_at_layers": [2, 3]}
    return [dict(figures, resident=program.resident) for program in programs]


def _hub(*_, **__):
    raise AssertionError("a documentation command without --dry-run reached for the hub")


def _split(folder: Path):
    """The loader of the session, with two questions in place of what is on the hub."""
    from malt_jax.stages.session import load_split
    from malt_jax.tasks import GENERATED, task_names

    hub = {*task_names()} - {*GENERATED, "custom", "logic"}

    def load(task, split, path, limit, seed):
        if path or task.name not in hub:
            return load_split(task, split, path, limit, seed)
        return [Question(f"{split}{n}", f"{split} {n}?", "1") for n in range(2)]

    return load


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_of_a_page_runs(page, model, tmp_path, monkeypatch):
    code = [t for kind, t in blocks(page) if kind == "python" and not t.startswith("# file: ")]
    if not code:
        return
    run = cli_run.trained()
    if any("AutoModel" in text for text in code):
        pytest.importorskip("torch", reason="transformers' models need torch")
        run = shutil.copytree(cli_run.as_trained(), tmp_path / "exported")
        assert cli.main(["export", *cli_run.flags()[:-1], str(run)]) == 0
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/mine").symlink_to(run)
    monkeypatch.setattr("malt_jax.models.model.local_folder", lambda *_: (model, None))
    # The page means a run of a built-in task; the tests' run has one in a module of theirs.
    monkeypatch.setattr("malt_jax.stages.trust.check_trust", lambda *_: None)
    names = {
        "MODEL": model,
        "RUN": run,
        "tokens": np.ones((2, 5), np.int32),
        "questions": [Question("Q1", "1+1=?", "2")],
    }
    with contextlib.ExitStack() as stack:
        if any("import openai" in text for text in code):
            port = stack.enter_context(served()).port
            here = partial(openai.OpenAI, base_url=f"http://127.0.0.1:{port}/v1")
            # In place of the address that the page gives to a server of its own.
            monkeypatch.setattr("openai.OpenAI", lambda base_url, **more: here(**more))
        for text in code:
            exec(compile(text, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_names_and_links_of_a_page_exist(page):
    text = page.read_text()
    for name in set(re.findall(r"`(malt_jax(?:\.\w+)+)`", text)):
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ImportError:
            assert hasattr(import_module(module), attribute), name
    for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link


def test_the_fields_a_page_names_exist():
    """Dotted names in backticks that begin with a section of the config are fields of it."""
    from malt_jax.config.run import all_fields

    paths = {re.sub(r"\.N\b", "", field.path) for field in all_fields()}
    prefixes = {path.rsplit(".", n)[0] for path in paths for n in range(path.count(".") + 1)}
    sections = "model|task|pipeline|search|data|train|sampler|eval|export|mesh"
    for page in PAGES:
        for name in re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:: [^`]*)?`", page.read_text()):
            assert name in prefixes, f"{page.name}: {name}"


def test_the_fields_that_a_resumed_run_may_change_are_those_of_the_code():
    from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS

    [said] = re.findall(
        r"Free to change: (.*?)\.\n", (ROOT / "docs/resume.md").read_text(), re.DOTALL
    )
    assert set(re.findall("`([^`]+)`", said)) == CANNOT_CHANGE_RESULTS


def test_the_answer_formats_of_the_pages_are_those_of_the_prompts():
    from malt_jax.tasks.graders import ANSWER_FORMATS

    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]+)` \|", (ROOT / "docs/own-task.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in rows] == [*ANSWER_FORMATS]
    for name, ending in rows:
        assert ending.split()[0] in ANSWER_FORMATS[name], f"{name}: {ending}"


def test_the_reference_has_every_public_name():
    sys.path.insert(0, str(ROOT / "scripts"))
    headings = re.findall("^##.*", import_module("api_reference").reference(), re.MULTILINE)
    written = re.findall("^##.*", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert written == headings, "run `python scripts/api_reference.py > docs/api.md`"
