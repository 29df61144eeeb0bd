"""`malt pool`: several seeds of one run as one table."""

from __future__ import annotations

from pathlib import Path

from malt_jax.commands.command import TRUST, Argument, Command, Invocation, Option
from malt_jax.commands.launch import print_table
from malt_jax.stages.trust import open_existing


def run(invocation: Invocation) -> None:
    """Prints the table over all runs, and writes it where --output says."""
    from malt_jax.evaluation.tables import to_terminal
    from malt_jax.stages.measured import write_results
    from malt_jax.stages.pool import check_output, pool

    options = invocation.options
    if options.output:
        check_output(Path(options.output))
    for folder in options.runs:
        open_existing(folder, options.trust_task_code)
    results = pool(options.runs)
    if options.output:
        for file in write_results(Path(options.output), results):
            print(file)
    print_table(to_terminal(results))


COMMAND = Command(
    name="pool",
    summary="several seeds of one run as one table, pooled and seed by seed",
    about="Every comparison over all seeds, with the answers to a question as one cluster, and for "
    "each seed alone. The runs must be evaluated and may differ in their seed only.",
    run=run,
    arguments=(Argument("runs", "Two or more run directories.", many=True),),
    options=(
        Option("--output", "Where results.json, .md, .tex and .csv are written.", "DIR"),
        TRUST,
    ),
    examples=("malt pool runs/seed-0 runs/seed-1 runs/seed-2 --output runs/pooled",),
)
