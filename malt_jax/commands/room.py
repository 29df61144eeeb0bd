"""Refuses a run that this machine has too little memory or disk for, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from malt_jax.config.pipeline import PHASES
from malt_jax.environment import check_disk, check_memory

if TYPE_CHECKING:
    from malt_jax.config.model import ModelConfig
    from malt_jax.config.run import Config
    from malt_jax.models.spec import ModelSpec

KINDS = {
    "run": ("sampling", *PHASES),
    "search": ("sampling",),
    "eval": ("sampling",),
    "train": PHASES,
}
"""The programs of `malt plan` that a command runs; a command that is not named runs none."""


def check_room(
    config: Config, specs: Mapping[ModelConfig, ModelSpec], command: str, *, new: bool
) -> None:
    """Raises UserError if the machine lacks what `malt plan` says the command needs.

    `new`: the run directory holds nothing yet, so that all it will hold must fit on the disk.
    """
    if command not in KINDS:
        return
    from malt_jax.planning.needs import count_needs_of_bases

    needs = count_needs_of_bases(config, specs, KINDS[command])
    check_memory(needs.memory)
    if new and command == "run":
        check_disk(config.output_dir, needs.disk)
