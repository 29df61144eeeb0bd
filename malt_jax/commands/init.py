"""`malt init`: a commented config to start from."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from malt_jax.commands.command import Argument, Command, Invocation, Option
from malt_jax.commands.fields import config_fields
from malt_jax.errors import UserError
from malt_jax.escape import one_line

CHOSEN = (
    *("model.path", "model.dtype", "task.name", "task.train_path", "task.eval_path"),
    *("task.num_train", "task.num_eval", "task.grader", "search.backup", "search.threshold"),
    *("search.block", "data.pairs", "data.pairs_per_prefix", "train.lora.rank"),
    *("train.lora.alpha", "train.sft.epochs", "train.sft.batch_size"),
    *("train.sft.optim.learning_rate", "train.dpo.epochs", "train.dpo.batch_size"),
    *("train.dpo.optim.learning_rate", "train.dpo.beta", "eval.baseline", "eval.trees"),
    *("seed", "rounds", "sharing", "output_dir"),
)
"""Fields a first config spells out; `malt fields` lists the others."""
ROLE_FIELDS = ("name", "branch", "temperature", "max_new_tokens", "train", "answers")


def run(invocation: Invocation) -> None:
    from malt_jax import config
    from malt_jax.config import reading
    from malt_jax.storage.atomic import write_text

    options = invocation.options
    output = Path(options.output) if options.output else None
    if output and os.path.lexists(output):
        raise UserError(f"{output}: exists; choose another --output.")
    text = starter(options.task, options.model, output)
    config.from_dict(yaml.load(text, Loader=reading.Loader))  # what is written can be run
    if output is None:
        print(text, end="")
    else:
        try:
            write_text(output, text)
        except OSError as error:
            raise UserError(
                f"{output}: could not be written ({error.strerror}); choose another --output."
            ) from None
        print(output)


def starter(task: str, model: str, output: Path | None = None) -> str:
    """The text of a config for a task and a model; it loads as it is.

    The run directory is named after the file it is written to, or else after task and model. For
    the embedded model it is the quickstart's config.
    """
    from malt_jax.config.run import QUICKSTART
    from malt_jax.models.hub import EMBEDDED
    from malt_jax.tasks import get_task

    name = output.stem if output else f"{task}-{Path(model).name}"
    run_dir = "runs/" + (re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "malt")
    if model == EMBEDDED:
        if task != "arithmetic":
            raise UserError(
                f"init: the embedded model reads only short sums, no prompts of {task!r}; name "
                "another model, or see `malt init arithmetic quickstart`, which also takes sums of "
                "your own in task.train_path and task.eval_path."
            )
        text = QUICKSTART.read_text(encoding="utf-8")
        return re.sub(r"(?m)^output_dir: .*$", f"output_dir: {run_dir}", text) if output else text
    found = get_task(task, allow_code=True)
    place = shlex.quote(one_line(str(output or "FILE.yaml")))
    values: dict[str, Any] = {
        "model.path": model,
        "task.name": task,
        "output_dir": run_dir,
    }
    if task == "custom":
        values |= {"task.train_path": "train.csv", "task.eval_path": "eval.csv",
                   "task.grader": "number"}  # fmt: skip
    lines = [
        f"# {found.name}: {found.description}".replace("\n", " "),
        "#",
        f"#   malt plan --config {place}              what it will cost, before it starts",
        f"#   malt run --config {place} --dry-run     questions, prompts, systems",
        f"#   malt run --config {place}               the run; again: it goes on",
        "#",
        "# Every other field and its default: malt fields",
    ]
    section: list[str] = []
    for field in config_fields():
        if field.path == "pipeline.roles.N.name":
            lines += _roles()
        if field.path not in CHOSEN:
            continue
        *above, leaf = field.path.split(".")
        shared = 0
        while shared < min(len(section), len(above)) and section[shared] == above[shared]:
            shared += 1
        if not shared:
            lines.append("")
        lines += [f"{'  ' * depth}{above[depth]}:" for depth in range(shared, len(above))]
        section = above
        value = values.get(field.path, field.default)
        lines += _entry(leaf, value, field.help, "  " * len(above))
    return "\n".join(lines) + "\n"


def _roles() -> list[str]:
    """The default chain, each role spelled out; its help stands at the first."""
    from malt_jax.config.reading import to_dict
    from malt_jax.config.run import Config

    helps = {f.path.rpartition(".")[2]: f for f in config_fields() if ".roles.N." in f.path}
    lines = ["", "pipeline:", "  # In the order of their turns.", "  roles:"]
    for index, role in enumerate(to_dict(Config().pipeline.roles)):
        for name in ROLE_FIELDS:
            help_text = helps[name].help if index == 0 else ""
            entry = _entry(name, role[name], help_text, "      ")
            if name == ROLE_FIELDS[0]:
                entry[-1] = entry[-1].replace("      ", "    - ", 1)
            lines += entry
    return lines


def _entry(name: str, value: Any, help_text: str, indent: str) -> list[str]:
    comment = [f"{indent}# {help_text}"] if help_text else []
    return [*comment, f"{indent}{name}: {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, allow_unicode=True)
    return text.removesuffix("...\n").strip()


COMMAND = Command(
    name="init",
    summary="writes a commented config for a task and a model",
    about="Prints the config, or writes it to a new file. `malt tasks` and `malt models` list what "
    "to choose from; the task `custom` reads questions and answers from a file of your own.",
    run=run,
    arguments=(
        Argument("task", "A name of `malt tasks`, or module:attribute."),
        Argument("model", "A local Hugging Face directory, a hub name, or `quickstart`."),
    ),
    options=(Option("--output", "The file to write; it must not exist.", "FILE"),),
    examples=("malt init gsm8k Qwen/Qwen2.5-1.5B-Instruct --output mine.yaml",),
)
