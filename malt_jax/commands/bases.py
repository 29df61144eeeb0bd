"""Checks the base models of a run before their weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from malt_jax.errors import UserError

if TYPE_CHECKING:
    from malt_jax.config.model import ModelConfig
    from malt_jax.config.run import Config
    from malt_jax.models.spec import ModelSpec
    from malt_jax.models.tokenizer import Tokenizer


class Found(NamedTuple):
    """What is known of a base model before its weights are read."""

    spec: ModelSpec
    tokenizer: Tokenizer


Models = Mapping["ModelConfig", Found]
"""The base models of a run, its own first."""


def specs_of(found: Models) -> dict[ModelConfig, ModelSpec]:
    return {config: one.spec for config, one in found.items()}


def check_models(config: Config, known: Models | None = None) -> Models:
    """The structure and tokenizer of every base; of weights only the headers are read.

    `known`: bases that were checked before. Adapters are checked in any case.
    """
    places = {config.model: "model.path"}
    for index, role in enumerate(config.pipeline.roles):
        places.setdefault(config.model_of(role.name), f"pipeline.roles.{index}.model.path")
    known = known or {}
    found = {base: known.get(base) or _check_model(base, where) for base, where in places.items()}
    check_adapters(config, specs_of(found))
    return found


def _check_model(base: ModelConfig, where: str) -> Found:
    from malt_jax.models.checkpoint import Checkpoint
    from malt_jax.models.hf_config import read_spec
    from malt_jax.models.hub import local_folder
    from malt_jax.models.tokenizer import load_tokenizer

    try:
        folder, _ = local_folder(base.path, base.revision)
        spec = read_spec(folder)
        Checkpoint(folder, tower=spec.tower)
        tokenizer = load_tokenizer(folder, spec.vocab)
        if tokenizer.has_chat_template:
            tokenizer.render("")
    except UserError as error:
        raise error.at(where) from None
    return Found(spec, tokenizer)


def check_adapters(config: Config, specs: Mapping[ModelConfig, ModelSpec]) -> None:
    """Refuses adapters that roles start from where they fit neither the model nor the run's own."""
    from malt_jax.models.adapters import check_room, load_adapter
    from malt_jax.models.lora import targets_of
    from malt_jax.models.peft_layout import has_layout

    of_role = {role.name: specs[config.model_of(role.name)] for role in config.pipeline.roles}
    policies = {"train": (config.train, specs[config.model])} | {
        f"pipeline.roles.{index}.training": (config.training_of(role.name), of_role[role.name])
        for index, role in enumerate(config.pipeline.roles)
        if role.training or role.model
    }
    for where, (train, spec) in policies.items() if not config.train.full else ():
        try:
            targets_of(spec, train.lora)
        except UserError as error:
            raise UserError(f"{where}.lora.{error}") from None
        if not (has_layout(spec, train.lora.targets) or config.export.merged):
            raise UserError(
                f"{where}.lora.targets: PEFT has no layout for adapters on the experts of "
                f"{spec.family}; set export.merged to true, or leave the experts out."
            )
    for index, role in enumerate(config.pipeline.roles):
        if role.adapter is not None:
            try:
                _, own = load_adapter(role.adapter, of_role[role.name])
                check_room(own, config.training_of(role.name).lora, role.adapter)
            except UserError as error:
                raise error.at(f"pipeline.roles.{index}.adapter") from None
