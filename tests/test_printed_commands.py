"""Every command that the project prints is one that it takes.

Looked through are all pages, comments of configs and scripts, docstrings, messages, help and the
report's templates. `test_docs` runs the commands of the pages and `test_model_card` those of model
cards; here every command line is read by the command's own parser and its fields by the config's.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import cli_run
from malt_jax import cli, config
from malt_jax.commands.command import parse
from malt_jax.commands.init import starter
from malt_jax.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGE, SCRIPTS = ROOT / "malt_jax", ROOT / "scripts"
COMMANDS = {command.name: command for command in cli.all_commands()}
STANDS_FOR = {"i/k": "1/2", "$i/4": "1/4", "$seed": "0"}
"""What placeholders of printed commands may be."""
MESSAGES = re.compile(r"(?:`|<\()(malt [^`)]+)[`)]")
LINES = re.compile(r"^[#\s]*((?:for .*; do )?malt [^#\n]*?)(?:\s{2,}.*|\s*#.*)?$", re.MULTILINE)


def commands_in(text: str) -> Iterator[str]:
    """Commands in backticks and on lines of their own, continued lines joined."""
    text = re.sub(r"\\\n[#\s]*", "", text)
    for found in (*MESSAGES.findall(text), *LINES.findall(text)):
        for part in re.split(r"[;|>]|&&", found):
            part = part.strip().removeprefix("do ")
            if part.startswith("malt ") and not re.search(r"\w: ", part):  # not a heading
                yield part


def texts_of(path: Path) -> Iterator[str]:
    """What a file prints: all of it, or the strings of Python, `{...}` where code fills them in."""
    text = path.read_text()
    if path.suffix != ".py":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = "\n" in node.value or node.value.startswith("  ")
            yield node.value if lines else "\n".join(MESSAGES.findall(node.value))
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant)
                else "{" + ast.unparse(part.value) + "}"
                for part in node.values
            )  # fmt: skip


def pages_blocks(text: str) -> str:
    """A page's fenced shell and text blocks and its backticks; other lines are prose."""
    blocks = re.findall(r"^```(?:sh|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = MESSAGES.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*blocks, *inline])


def files() -> list[Path]:
    patterns = ("*.py", "*.j2", "*.yaml", "*.sh", "*.sbatch")
    found = [p for folder in (PACKAGE, ROOT / "configs", SCRIPTS) for q in patterns
             for p in folder.rglob(q)]  # fmt: skip
    return sorted(found)


def check(command: str) -> None:
    """Raises UserError if a printed command would be refused for its words."""
    words = [STANDS_FOR.get(word, word) for word in shlex.split(command)[1:] if word != "$@"]
    if words == ["--help"] or words == ["--version"] or words[0].isupper():
        return
    name, *rest = words
    if "{" in command or "..." in command:
        return  # a pattern, not a command
    assert name in COMMANDS, command
    if all(word.startswith("--") for word in rest):  # what prose calls a command, without values
        known = {"--help", "--dry-run", *(o.flag for o in COMMANDS[name].own_options)}
        assert set(rest) <= known, command
        return
    invocation = parse(COMMANDS[name], rest)
    if invocation.command.takes_config:
        config.from_dict({}, invocation.fields)


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]),
                         ids=lambda page: page.name)  # fmt: skip
def test_commands_of_a_page_are_accepted(page):
    for command in commands_in(pages_blocks(page.read_text())):
        check(command)


def test_commands_in_messages_comments_and_docstrings_are_accepted():
    found = 0
    for path in files():
        for text in texts_of(path):
            for command in commands_in(text):
                try:
                    check(command)
                except (UserError, ValueError) as error:
                    raise AssertionError(f"{path.relative_to(ROOT)}: {command}: {error}") from None
                found += 1
    assert found > 80


def test_examples_of_every_commands_help_are_accepted():
    for command in COMMANDS.values():
        assert command.examples
        for example in command.examples:
            check(re.split("[>|<]", example)[0])


def test_scripts_that_are_named_exist_and_have_the_flags_that_are_given():
    fields = {field.flag for field in config.run.all_fields()}
    assert "--task.name" in fields
    for path in [*files(), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"\\\n[#\s]*", "", path.read_text())
        for name, rest in re.findall(r"(?:python|sh) (scripts/\w+\.(?:py|sh))([^\n`]*)", text):
            script = (ROOT / name).read_text()
            if "scripts.test" not in name:  # what follows there are pytest's words
                own = re.split(r" -- |#|;", rest)[0]
                for flag in re.findall(r"(?<=[ \[])--[a-z-]+(?:\.[a-z-]+)*", own):
                    known = flag in script or '"$@"' in script
                    known = known or ("parse_known_args" in script and flag in fields)
                    assert known, f"{path.relative_to(ROOT)}: {name} has no {flag}"


@pytest.mark.parametrize("script", sorted(p for p in SCRIPTS.rglob("*") if p.suffix in
                                          (".sh", ".sbatch")), ids=lambda p: p.name)  # fmt: skip
def test_shell_scripts_have_no_syntax_error(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("task", ["gsm8k", "math", "csqa"])
def test_the_commands_that_a_file_of_init_prints_are_accepted(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in commands_of_init(task, "org/model-1B"):
        check(command)


@pytest.mark.parametrize("chat", [False, True])
def test_the_commands_that_a_file_of_init_prints_run(chat, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = Path(shutil.copytree(cli_run.model(), "model"))
    if chat:
        template = "{% for message in messages %}u {{ message['content'] }}{% endfor %} a "
        settings = json.loads((model / "tokenizer_config.json").read_text())
        settings["chat_template"] = template
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
    Path("train.csv").write_text("question,answer\n1+1=?,2\n2+2=?,4\n")
    Path("eval.csv").write_text("question,answer\n3+3=?,6\n")
    plan, *runs = commands_of_init("custom", "model")
    check(plan)
    for command in runs:
        _, *words = shlex.split(command)
        dry = [] if "--dry-run" in words else ["--dry-run"]
        assert cli.main([*words, *dry]) == 0, capsys.readouterr().err


def commands_of_init(task: str, model: str) -> list[str]:
    """What a new file with an awkward name prints; the file itself is a config."""
    path = Path("my config.yaml")
    assert cli.main(["init", task, model, "--output", str(path)]) == 0
    config.from_dict(yaml.safe_load(path.read_text()))
    printed = [c for c in commands_in(path.read_text()) if path.name in c]
    assert [command.split()[1] for command in printed] == ["plan", "run", "run"]
    return printed


def test_init_for_the_embedded_model_prints_commands_that_run(capsys):
    for command in commands_in(starter("arithmetic", "quickstart")):
        _, *words = shlex.split(command)
        assert cli.main([*words, "--dry-run"]) == 0, capsys.readouterr().err
