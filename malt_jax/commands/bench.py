"""`malt bench`: the project's own benchmark of the sampler and of training."""

from __future__ import annotations

import argparse
import json
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from malt_jax.commands.command import Argument, Command, Invocation, Option
from malt_jax.commands.launch import read_config
from malt_jax.errors import UserError

if TYPE_CHECKING:
    from malt_jax.config import Config

OWN = {
    "sampler": ("questions", "branch", "max_new_tokens", "no_roofline"),
    "train": ("stage", "steps"),
}
"""Flags that only one half has."""


def run(invocation: Invocation) -> None:
    """Prints the measurements as one JSON object on the last line."""
    options = invocation.options
    what = options.what
    for other in (name for half, names in OWN.items() if half != what for name in names):
        if getattr(options, other):
            raise UserError(f"bench: --{other.replace('_', '-')} is not a flag of `bench {what}`.")
    config = read_config(invocation)
    bench = import_module(f"malt_jax.bench.{what}")
    print(json.dumps(bench.run(arguments(what, bench, config, options))))


def arguments(
    what: str, bench: Any, config: Config, options: argparse.Namespace
) -> argparse.Namespace:
    """The benchmark's own arguments: its defaults, then the config's fields, then the flags."""
    from malt_jax.models.hub import local_folder

    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    values = vars(parser.parse_args([]))
    try:
        values["model"] = os.fspath(local_folder(config.model.path, config.model.revision)[0])
    except UserError as error:
        raise UserError(f"model.path: {error}") from None
    if config.model.dtype != "auto":
        values["dtype"] = config.model.dtype
    if what == "sampler":
        values["train_path"] = config.task.train_path
        for name in ("rows", "width", "cache", "weights"):
            values[name] = getattr(config.sampler, name)
    else:
        phase = config.train.dpo if options.stage == "dpo" else config.train.sft
        values["batch"] = phase.batch_size
        values["rank"] = config.train.lora.rank
        values["micro_tokens"] = phase.loop.micro_tokens
        values["remat"] = phase.loop.remat
    for name in (*OWN[what], "no_peer"):
        values[name] = getattr(options, name) or values[name]
    return argparse.Namespace(**values)


COMMAND = Command(
    name="bench",
    summary="the project's own benchmark; one JSON object on the last line",
    about="`sampler` expands trees, `train` takes training steps; beside each, the same work in "
    "transformers or TRL in the same run, where torch is installed.",
    run=run,
    arguments=(Argument("what", "Which half to measure.", ("sampler", "train")),),
    options=(
        Option("--questions", "sampler: questions to expand; default: 8.", "N", read=int),
        Option("--branch", "sampler: completions of every prompt; default: 3.", "N", read=int),
        Option("--max-new-tokens", "sampler: of a completion; default: 128.", "N", read=int),
        Option("--no-roofline", "sampler: leave the machine's own limits out."),
        Option("--stage", "train: sft or dpo; default: sft.", "STAGE"),
        Option("--steps", "train: steps, the first one not timed; default: 4.", "N", read=int),
        Option("--no-peer", "Do not run transformers or TRL."),
    ),
    fields=(
        "model.path",
        "model.dtype",
        "sampler.rows",
        "train.sft.batch_size",
    ),
    examples=("malt bench sampler --model.path DIR", "malt bench train --model.path DIR"),
)
