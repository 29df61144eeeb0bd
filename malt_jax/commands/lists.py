"""`malt tasks` and `malt models`: what is supported, and with which limits."""

from __future__ import annotations

from malt_jax.commands.command import Command, Invocation
from malt_jax.commands.launch import print_table
from malt_jax.evaluation.table import Table, texts


def tasks(invocation: Invocation) -> None:
    """Prints the built-in tasks."""
    from malt_jax.tasks import get_task, task_names

    rows = []
    for name in task_names():
        # The task is only described here, and no code of a model is run.
        task = get_task(name, allow_code=True)
        extra = [role for role in task.templates if role in ("retry", "debate")]
        cells = (name, task.description, ", ".join(task.splits), ", ".join(extra))
        rows.append((*cells, task.answer_format))
    head = texts("task", "questions", "splits", "turns besides the roles'", "how to answer")
    print_table(Table(head, rows).terminal())
    print()
    print("Without task.train_path and task.eval_path, questions come from the hub, those of")
    print("`arithmetic`, `triples` and `parity` from the package. `custom` reads a JSONL, CSV or")
    print("Parquet file with the columns question and answer; module:attribute imports a Task of")
    print("your own. Tasks that execute what a model wrote need --task.allow-code.")


def models(invocation: Invocation) -> None:
    """Prints the supported architectures, the sizes that are read, and what is refused."""
    from malt_jax.models.hf_families import FAMILIES, LIMITS, REFUSED, TOWERS

    rows = [
        (name, family.architecture, family.sizes, LIMITS.get(name, ""))
        for name, family in FAMILIES.items()
    ]
    rows += [
        (name, architecture, f"the text tower, {text}", LIMITS[name])
        for name, (architecture, text) in TOWERS.items()
    ]
    head = texts("model_type", "architecture", "read in the tests", "limits")
    print_table(Table(head, rows).terminal())
    print()
    print("Any checkpoint of these architectures in safetensors works, whatever its size, from a")
    print("local directory or the hub, and so does `quickstart`, the tiny model in the package.")
    print("Each family is compared with transformers and PEFT: logits, greedy tokens, gradients of")
    print("an adapter, and both exports. The context length is that of config.json. Refused:")
    others = ("holds quantised weights (except MXFP4)", "asks for code shipped with it")
    for meaning in dict.fromkeys((*REFUSED.values(), *others)):
        print(f"  a checkpoint that {meaning}")


COMMANDS = (
    Command(
        name="tasks",
        summary="the built-in tasks, their splits and answer formats",
        about="A task consists of questions, a grader and a prompt template for each role. "
        "--task.name chooses one. `custom` grades questions of your own file, and "
        "module:attribute is a task in your own Python.",
        run=tasks,
        examples=("malt tasks",),
    ),
    Command(
        name="models",
        summary="the supported model families and sizes, and what is refused",
        about="Any checkpoint of these architectures works, whatever its name. --model.path takes "
        "its folder or its name on the hub. Other architectures are refused before anything is "
        "written.",
        run=models,
        examples=("malt models",),
    ),
)
