"""Opens a run to be read, unless its config makes this process run code that nobody agreed to.

A config that the user gives with --config, or flags of the command line, are the user's own words.
The config.yaml inside a run directory may have been written by whoever made the run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from malt_jax.checks import show
from malt_jax.config.reading import apply_flags, leaves
from malt_jax.config.run import Config, from_dict
from malt_jax.errors import UserError

if TYPE_CHECKING:
    from malt_jax.storage.rundir import RunDir


def open_existing(
    folder: str | os.PathLike, trusted: bool, flags: Sequence[str] = ()
) -> tuple[Config, RunDir]:
    """The config of a run, with flags over it, and its directory, to be read; see `check_trust`.

    Compiled programs are not read from a folder that only the run's config names: JAX would execute
    what it finds there.
    """
    from malt_jax.storage.rundir import RunDir

    run, said = RunDir.existing(folder), apply_flags({}, flags)
    config = from_dict(run.config, list(flags))
    check_trust(config, folder, trusted, said)
    if not trusted and config.sampler.cache_dir and "cache_dir" not in said.get("sampler", {}):
        config = replace(config, sampler=replace(config.sampler, cache_dir="auto"))
    return config, run


def check_destinations(config: Config, place: object, trusted: bool, said: dict[str, Any]) -> None:
    """Raises UserError if a run's config sends it somewhere that the user has not named.

    The arguments are those of `check_trust`. For commands that open a run to write it.
    """
    named = {
        "mirror": (config.mirror, "mirror" in said),
        "export.push_to_hub": (
            config.export.push_to_hub, "push_to_hub" in said.get("export", {})
        ),
        "wandb": (config.wandb, "wandb" in said),
        "trackio": (config.trackio, "trackio" in said),
    }  # fmt: skip
    for field, (value, given) in named.items():
        if value and not given and not trusted:
            flag = f"--{field.replace('_', '-')}"
            raise UserError(
                f"{place}: its config has {field}: {show(value)}, which sends what it holds from "
                f"here to there; continue your own run with its --config, or say {flag} yourself "
                f"(`{flag} {'false' if value is True else 'null'}` leaves it out)."
            )


def check_trust(config: Config, place: object, trusted: bool, said: dict[str, Any]) -> None:
    """Raises UserError if a run's config names Python code that the user has not agreed to run.

    `place` is the run directory, `said` the nested mappings of the flags that the user gave.
    """
    if trusted:
        return
    # A name that the user has typed in a flag is the user's own, wherever else it stands.
    own = [value for _, value in leaves(said)]
    from malt_jax.stages.variants import varied  # here, because it imports what computes

    # An ablation is a config of its own, however it spells its fields.
    for one in (config, *(varied(config, ablation) for ablation in config.ablations)):
        readers = [("verdict reader", role.verdict) for role in one.pipeline.roles]
        for what, name in [("task", one.task.name), *readers]:
            if ":" in name and name not in own:
                raise UserError(
                    f"{place}: its config names the {what} {show(name)}, which is Python code of "
                    "whoever made the run; if you trust it, add --trust-task-code (in Python "
                    "trust_task_code=True), or continue your own run with its --config."
                )
        if one.task.allow_code and "allow_code" not in said.get("task", {}):
            raise UserError(
                f"{place}: its config lets graders execute what the model writes "
                "(task.allow_code); if you agree, add --trust-task-code, or continue your own run "
                "with its --config."
            )
