"""`malt pool`: several seeds of one run as one table."""

from __future__ import annotations

from pathlib import Path

from malt_jax.commands.command import Argument, Command, Invocation, Option
from malt_jax.commands.launch import print_table


def run(invocation: Invocation) -> None:
    from malt_jax.evaluation.tables import to_terminal
    from malt_jax.stages.measured import write_results
    from malt_jax.stages.pool import check_output, pool

    options = invocation.options
    if options.output:
        check_output(Path(options.output))
    results = pool(options.runs)
    if options.output:
        for file in write_results(Path(options.output), results):
            print(file)
    print_table(to_terminal(results))


COMMAND = Command(
    name="pool",
    summary="several seeds of one run as one table, pooled and seed by seed",
    about="Every comparison over all seeds, a question's answers counted as one cluster, and under "
    "each seed alone. The runs must be evaluated and differ in their seed only.",
    run=run,
    arguments=(Argument("runs", "Run directories, two or more.", many=True),),
    options=(Option("--output", "Where results.json, .md, .tex and .csv are written.", "DIR"),),
    examples=("malt pool runs/seed-0 runs/seed-1 runs/seed-2 --output runs/pooled",),
)
