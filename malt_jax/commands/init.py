"""`malt init`: a commented config to start from."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from malt_jax.commands.command import Argument, Command, Invocation, Option
from malt_jax.config.fields import field_docs
from malt_jax.config.pipeline import RoleConfig
from malt_jax.config.reading import to_dict
from malt_jax.config.run import QUICKSTART, Config, from_dict
from malt_jax.config.strict_yaml import load, write_value
from malt_jax.errors import UserError
from malt_jax.escape import one_line

CHOSEN = (
    "model.path",
    "model.dtype",
    "task.name",
    "task.train_path",
    "task.eval_path",
    "task.num_train",
    "task.num_eval",
    "task.grader",
    "search.backup",
    "search.threshold",
    "search.block",
    "data.pairs",
    "data.pairs_per_prefix",
    "train.lora.rank",
    "train.lora.alpha",
    "train.sft.epochs",
    "train.sft.batch_size",
    "train.sft.optim.learning_rate",
    "train.dpo.epochs",
    "train.dpo.batch_size",
    "train.dpo.optim.learning_rate",
    "train.dpo.beta",
    "eval.baseline",
    "eval.trees",
    "seed",
    "rounds",
    "sharing",
    "output_dir",
)
"""Fields that a first config spells out; `malt fields` lists the others."""
ROLE_FIELDS = ("name", "branch", "temperature", "max_new_tokens", "stop", "train", "answers")
"""Fields of each role that a first config spells out."""


def run(invocation: Invocation) -> None:
    """Prints the config, or writes it to a new file and prints the file's name."""
    from malt_jax.storage.atomic import write_text

    options = invocation.options
    output = Path(options.output) if options.output else None
    # A link counts as existing too, even if it leads nowhere.
    if output and os.path.lexists(output):
        raise UserError(f"{output}: exists; choose another --output.")
    text = starter(options.task, options.model, output)
    from_dict(load(text))  # what is written can be run
    if output is None:
        print(text, end="")
        return
    try:
        write_text(output, text)
    except OSError as error:
        raise UserError(
            f"{output}: could not be written ({error.strerror}); choose another --output."
        ) from None
    print(output)


def starter(task: str, model: str, output: Path | None = None) -> str:
    """The text of a config for a task and a model, which loads as it is.

    The run directory is named after the file it is written to, or else after task and model. For
    the embedded model it is the quickstart's config.
    """
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
    # Nothing is run here; the config decides later whether code may be run.
    found = get_task(task, allow_code=True)
    values: dict[str, Any] = {
        "model.path": model,
        "task.name": task,
        "output_dir": run_dir,
    }
    if task == "custom":
        values |= {"task.train_path": "train.csv", "task.eval_path": "eval.csv",
                   "task.grader": "number"}  # fmt: skip
    place = shlex.quote(one_line(str(output or "FILE.yaml")))
    header = [
        one_line(f"{found.name}: {found.description}"),
        "",
        f"  malt plan --config {place}              what it will cost, before it starts",
        f"  malt run --config {place} --dry-run     questions, prompts, systems",
        f"  malt run --config {place}               the run; give it again to continue",
        "",
        "Every other field and its default: malt fields",
    ]
    stop = () if _has_chat_template(model) else _next_question(found.templates)
    lines = [f"# {line}".rstrip() for line in header]
    lines += _section(Config(), values, stop)
    return "\n".join(lines) + "\n"


def _section(
    config: Any, values: Mapping[str, Any], stop: Sequence[str], above: str = ""
) -> Iterator[str]:
    """The lines of a section of the config, with the chosen fields and their help."""
    for field in dataclasses.fields(config):
        path, value = f"{above}{field.name}", getattr(config, field.name)
        if path == "pipeline.roles":
            lines = ["# The roles in the order of their turns.", "roles:", *_roles(value, stop)]
        elif dataclasses.is_dataclass(value):
            below = [f"  {line}" for line in _section(value, values, stop, f"{path}.")]
            lines = [f"{field.name}:", *below] if below else []
        elif path in CHOSEN:
            lines = _entry(type(config), field.name, values.get(path, value))
        else:
            lines = []
        if lines and not above:
            yield ""
        yield from lines


def _roles(roles: Sequence[RoleConfig], stop: Sequence[str]) -> Iterator[str]:
    """The default chain; only the first role has the help of the fields."""
    for index, role in enumerate(roles):
        values = to_dict(role) | {"stop": list(stop)}
        # The last line of an entry is the field itself, the lines before it are its help.
        lines = [
            line
            for name in ROLE_FIELDS
            for line in _entry(RoleConfig, name, values[name])[0 if index == 0 else -1 :]
        ]
        if index == 0:
            yield f"  {lines.pop(0)}"  # the comment that explains the name
        yield f"  - {lines[0]}"
        yield from (f"    {line}" for line in lines[1:])


def _entry(cls: type, name: str, value: Any) -> list[str]:
    """A field below its help text."""
    return [f"# {line}" for line in field_docs(cls)[name].splitlines()] + [
        f"{name}: {write_value(value)}"
    ]


def _next_question(templates: Mapping[str, str]) -> tuple[str, ...]:
    """Texts with which a base model begins a next question of its own after its answer.

    It has learnt to continue documents. Without a stop, the answer to that next question would be
    the last one in the turn, and graded.
    """
    before = templates.get("generator", "").partition("{question}")[0].rstrip().splitlines()
    heading = before[-1].strip() if before else ""
    return tuple(dict.fromkeys(f"\n{text}" for text in (heading, "Question:") if text))


def _has_chat_template(model: str) -> bool:
    """Whether a model in a local folder or the hub's cache has a chat template; else True."""
    folder = Path(model)
    if not os.path.isdir(folder):
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(model, "tokenizer_config.json")
        except ValueError:  # not a name of the hub; `malt run` will say so
            cached = None
        if not isinstance(cached, str):
            return True
        folder = Path(cached).parent
    from malt_jax.models.tokenizer_files import read_chat_template

    return read_chat_template(folder) is not None


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
