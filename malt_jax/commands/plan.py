"""`malt plan`: what a run will cost before it starts."""

from __future__ import annotations

from malt_jax.commands.command import Command, Invocation, Option


def run(invocation: Invocation) -> None:
    pass


COMMAND = Command(
    name="plan",
    summary="what the run will cost before it starts",
    about="Parameters, tree calls, tokens and bytes per device. With --topology it compiles every "
    "program for that TPU slice, on this machine, and prints memory and time per program.",
    run=run,
    options=(
        Option("--topology", "A TPU slice, as v5p:2x2x4 (needs the extra `tpu`).", "NAME"),
        Option("--json", "Print one JSON object instead of tables."),
    ),
    fields=(
        "model.path",
        "task.num_train",
        "pipeline.roles.N.branch",
        "pipeline.roles.N.max_new_tokens",
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
        "train.full",
    ),
    examples=(
        "malt plan --config configs/gsm8k.yaml",
        "malt plan --config configs/gsm8k.yaml --topology v5p:2x2x4",
    ),
)
