"""`malt bench`: the project's own benchmark of the sampler and of training."""

from __future__ import annotations

from malt_jax.commands.command import Argument, Command, Invocation


def run(invocation: Invocation) -> None:
    pass


COMMAND = Command(
    name="bench",
    summary="the project's own benchmark; one JSON object on the last line",
    about="Measures the sampler's or the training's throughput on this machine, beside "
    "transformers in the same run where torch is installed.",
    run=run,
    arguments=(Argument("what", "Which half to measure.", ("sampler", "train")),),
    fields=("model.path", "pipeline.roles.N.max_new_tokens", "sampler.slots", "sampler.cache",
            "train.sft.batch_size"),  # fmt: skip
    examples=("malt bench sampler --model.path quickstart",),
)
