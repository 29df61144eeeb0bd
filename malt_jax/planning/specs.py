"""The structure of the model to plan for, from its config.json alone."""

from __future__ import annotations

from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.models.hf_config import read_spec
from malt_jax.models.hub import EMBEDDED, local_folder
from malt_jax.models.spec import ModelSpec

SHIPPED = Path(__file__).with_name("specs")
"""config.json of the recipes' models, so that planning needs neither network nor token."""


def find_spec(path: str, revision: str | None = None) -> tuple[ModelSpec, str]:
    """The spec, and where it was read: a local folder, else a shipped config.json, else the hub."""
    # By the last part of the name, so that another organisation's copy needs no network either.
    shipped = SHIPPED / path.rpartition("/")[2]
    local = path == EMBEDDED or Path(path).is_dir()
    if not local and path.count("/") == 1 and (shipped / "config.json").is_file():
        return read_spec(shipped), f"{path}: the config.json shipped with malt-jax"
    try:
        folder, _ = local_folder(path, revision)
        return read_spec(folder), str(folder)
    except UserError as error:
        raise error.at("model.path") from None
