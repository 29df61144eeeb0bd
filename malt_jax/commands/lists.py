"""`malt tasks` and `malt models`: what is supported, and with which limits."""

from __future__ import annotations

from malt_jax.commands.command import Command, Invocation
from malt_jax.commands.launch import print_table


def tasks(invocation: Invocation) -> None:
    from rich.table import Table

    from malt_jax.escape import one_line
    from malt_jax.tasks import get_task, task_names

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "questions", "splits", "turns besides the roles'", "how to answer"):
        table.add_column(heading)
    for name in task_names():
        task = get_task(name, allow_code=True)
        extra = [role for role in task.templates if role in ("retry", "debate")]
        cells = (name, task.description, ", ".join(task.splits), ", ".join(extra))
        table.add_row(*map(one_line, (*cells, task.answer_format)))
    print_table(table)
    print()
    print("A task without task.train_path and task.eval_path comes from the hub, `arithmetic` from")
    print("the package. `custom` reads a JSONL, CSV or Parquet file with the columns question and")
    print("answer; module:attribute imports a Task of your own. Tasks that execute what a model")
    print("wrote need --task.allow-code.")


def models(invocation: Invocation) -> None:
    from rich.table import Table

    from malt_jax.models.hf_config import FAMILIES, REFUSED, SUPPORTED

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model_type", "architecture"):
        table.add_column(heading)
    for name, family in FAMILIES.items():
        table.add_row(name, family.architecture)
    print_table(table)
    print()
    print(f"{SUPPORTED}:")
    print("checkpoints in safetensors, from a local directory or the hub, and `quickstart`, the")
    print("tiny model in the package. The context is config.json's. Refused by name:")
    for meaning in dict.fromkeys(REFUSED.values()):
        print(f"  a checkpoint that {meaning}")


COMMANDS = (
    Command(
        name="tasks",
        summary="the tasks there are, their splits and answer formats",
        about="A task is questions, a grader and a prompt template a role.",
        run=tasks,
        examples=("malt tasks",),
    ),
    Command(
        name="models",
        summary="the model families there are, and what is refused",
        about="Any checkpoint of these architectures works, whatever its name.",
        run=models,
        examples=("malt models",),
    ),
)
