"""`malt report --compare A B` and `--watch`: pages that are not a part of a run."""

from __future__ import annotations

import re
from pathlib import Path

from malt_jax.commands.command import Invocation, Option
from malt_jax.errors import UserError

OPTIONS = (
    Option("--compare", "Two runs side by side on a page of their own.", "DIR", several=True),
    Option("--output", "With --compare: the page's file.", "FILE"),
    Option("--watch", "Serve the page on 127.0.0.1 and renew it while the run continues."),
    Option("--port", "With --watch; 0 takes a free one.", "N", 0, int),
)


def asks_for_page(invocation: Invocation) -> bool:
    """Whether a page beside the run is meant, and not the run's own report."""
    options = invocation.options
    if options.compare and options.watch:
        raise UserError("--watch: serves the page of one run; leave --compare out.")
    if options.output and not options.compare:
        raise UserError("--output: belongs to --compare A B; a report is RUN/report.html.")
    if options.port and not options.watch:
        raise UserError("--port: belongs to --watch.")
    if options.redo and (options.compare or options.watch):
        raise UserError("--redo: repeats a stage of a run, and these pages are none.")
    return bool(options.compare or options.watch)


def run(invocation: Invocation) -> None:
    """Writes the comparison and prints its path, or serves the live page until it is stopped."""
    if invocation.options.compare:
        _compare(invocation)
    else:
        _watch(invocation)


def _compare(invocation: Invocation) -> None:
    from malt_jax.stages.compare import check_output, compare
    from malt_jax.stages.trust import open_existing

    options = invocation.options
    if len(options.compare) != 2:
        raise UserError(f"--compare: found {len(options.compare)} run(s); give two, A and B.")
    if options.config or invocation.fields:
        raise UserError("--compare: the runs have their configs; give no --config and no fields.")
    runs = [open_existing(folder, options.trust_task_code)[1] for folder in options.compare]
    # Names of folders may hold anything; those of files that we make hold letters and digits.
    names = (re.sub(r"[^A-Za-z0-9.]+", "-", one.path.name) for one in runs)
    output = Path(options.output or f"compare-{'-'.join(names)}.html").absolute()
    check_output(output)
    if options.dry_run:
        print(f"malt report would compare {runs[0].path} with {runs[1].path} in {output}.")
        return
    compare(runs[0], runs[1], output)
    print(output)


def _watch(invocation: Invocation) -> None:
    from malt_jax.commands.launch import read_config
    from malt_jax.report.live import serve
    from malt_jax.stages.evaluations import evaluated
    from malt_jax.storage.rundir import RunDir
    from malt_jax.storage.signals import graceful_stop, raise_if_stopped, signal_received

    port = invocation.options.port
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port: found {port}, allowed: 0 (a free one) to 65535.")
    directory = RunDir.existing(read_config(invocation).output_dir)
    if invocation.options.dry_run:
        print(f"malt report would serve the page of {directory.path} and write nothing.")
        return
    with graceful_stop("stopping; the run itself goes on"):
        serve(
            directory.path,
            port,
            evaluations=lambda: evaluated(directory),
            stopped=signal_received,
            on_ready=lambda address: print(address, flush=True),
        )
        raise_if_stopped()
