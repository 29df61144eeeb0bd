"""`malt bench`: the project's own benchmarks of sampling, of training and of compiled programs."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.checks import show, whole_number
from malt_jax.commands.command import Argument, Command, Invocation, Option
from malt_jax.commands.launch import read_config
from malt_jax.config.pipeline import PHASES
from malt_jax.config.task import TaskConfig
from malt_jax.errors import UserError

if TYPE_CHECKING:
    from malt_jax.config.run import Config

OWN = {
    "sampler": ("questions", "branch", "max_new_tokens", "no_roofline", "peer_batches"),
    "train": ("stage", "steps"),
    "roofline": ("topology",),
}
"""Flags that only one of the benchmarks has."""


def run(invocation: Invocation) -> None:
    """Prints the measurements as one JSON object on the last line."""
    options = invocation.options
    what = options.what
    # None and False mean that an option of another benchmark was not given.
    for name in (name for half, names in OWN.items() if half != what for name in names):
        if getattr(options, name) not in (None, False):
            raise UserError(f"bench: --{name.replace('_', '-')} is not a flag of `bench {what}`.")
    if what == "roofline":
        _check_slice(options.topology)  # before the config is read
    config = read_config(invocation)
    if what == "roofline":
        _roofline(config, options.topology)
        return
    bench = import_module(f"malt_jax.bench.{what}")
    print(json.dumps(bench.run(arguments(what, bench, config, options))))


def _check_slice(topology: str | None) -> None:
    from malt_jax.planning.chips import find_target

    if topology is None:
        raise UserError("bench roofline: --topology is missing; name a TPU slice, as v5p:2x2x1.")
    if find_target(topology, compiles=False).chip.platform != "tpu":
        raise UserError(
            f"bench roofline: --topology: found {topology!r}, allowed: a TPU slice such as "
            "v5p:2x2x1, for which the program can be compiled here."
        )


def _roofline(config: Config, topology: str) -> None:
    from malt_jax.environment import leave_devices_free

    leave_devices_free()
    from malt_jax.bench import roofline
    from malt_jax.planning.chips import find_target
    from malt_jax.planning.specs import find_spec

    spec, _ = find_spec(config.model.path, config.model.revision)
    result = roofline.run(config, spec, find_target(topology))
    for line in roofline.tables(result):
        print(line)
    print(json.dumps(result))


def arguments(what: str, bench: Any, config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """The benchmark's settings: its defaults, overridden by the config and then by flags."""
    from malt_jax.config.reading import to_dict
    from malt_jax.models.hf_config import read_spec
    from malt_jax.models.hub import local_folder

    values = dict(bench.DEFAULTS)
    try:
        folder, _ = local_folder(config.model.path, config.model.revision)
    except UserError as error:
        raise error.at("model.path") from None
    values["model"] = str(Path(folder).absolute())
    if config.model.dtype != "auto":
        values["dtype"] = config.model.dtype
    values["quantize"] = config.model.quantize
    if what == "sampler":
        values["train_path"] = config.task.train_path
        if config.task.name != TaskConfig().name:
            values["task"] = config.task.name
        values["sampler"] = to_dict(config.sampler)
    else:
        if config.train.full:
            raise UserError(
                "bench train: train.full: true, but adapters are measured; leave it out."
            )
        phase = config.train.phase(options.stage or "sft")
        values["batch"] = phase.batch_size
        values["rank"] = config.train.lora.rank
        for name in bench.LOOP_FIELDS:
            values[name] = getattr(phase.loop, name)
    for name in (*OWN[what], "no_peer"):
        if (given := getattr(options, name)) is not None:
            values[name] = given
    if what == "sampler":
        context = read_spec(Path(values["model"])).context
        if values["max_new_tokens"] >= context:
            raise UserError(
                f"bench: --max-new-tokens: found {values['max_new_tokens']}, but prompt and "
                f"completion share the model's context of {context} tokens; lower it."
            )
    return values


def _number(flag: str, least: int, most: int, help: str) -> Option:
    """A flag that takes a whole number within a range."""

    def read(text: str) -> int:
        number = whole_number(text)
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"found {show(text)}, allowed: {least} to {most}")
        return number

    return Option(flag, help, "N", read=read)


def _sizes(text: str) -> str:
    if not all(whole_number(size) for size in text.split(",")):
        raise argparse.ArgumentTypeError(f"found {show(text)}, allowed: numbers such as 4,8,16")
    return text


def _stage(text: str) -> str:
    if text not in PHASES:
        raise argparse.ArgumentTypeError(f"found {show(text)}, allowed: {', '.join(PHASES)}")
    return text


COMMAND = Command(
    name="bench",
    summary="benchmarks of sampling and training; one JSON object on the last line",
    about="`sampler` expands trees, `train` takes training steps, each beside transformers or TRL "
    "and google-tunix where these are installed. `roofline` runs nothing: it compiles the decode "
    "program for a TPU and compares the bytes of a step with their floor.",
    run=run,
    arguments=(Argument("what", "What to measure.", ("sampler", "train", "roofline")),),
    options=(
        _number("--questions", 1, 10_000, "sampler: questions to expand; default: 8."),
        _number("--branch", 1, 64, "sampler: completions per prompt; default: 3."),
        _number("--max-new-tokens", 1, 1 << 17, "sampler: tokens per completion; default: 128."),
        Option("--no-roofline", "sampler: do not measure the machine's own rates."),
        Option("--stage", "train: sft, dpo, kto or pg; default: sft.", "STAGE", read=_stage),
        _number("--steps", 2, 10_000, "train: steps, the first not timed; default: 4."),
        Option(
            "--peer-batches", "sampler: batch sizes to try; default: 4,8,16.", "N,N", read=_sizes
        ),
        Option("--no-peer", "sampler, train: only malt-jax, no peers."),
        Option("--topology", "roofline: a slice, as v5p:2x2x1; needs libtpu.", "NAME"),
    ),
    fields=("model.path", "model.dtype", "task.name", "task.train_path", "sampler.rows"),
    computes=True,
    examples=(
        "malt bench sampler --model.path DIR",
        "malt bench train --model.path DIR",
        "malt bench roofline --topology v5p:2x2x1 --model.path meta-llama/Llama-3.1-8B-Instruct",
    ),
)
