"""Export: every role in Hugging Face format, merged and as a PEFT adapter, with a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext

from flax import nnx

from malt_jax.data.role_data import policy_name
from malt_jax.errors import UserError, first_line
from malt_jax.export.cards import CardFacts, base_license, model_card
from malt_jax.export.role import export_role
from malt_jax.models.lora import Adapter, targets_of
from malt_jax.models.peft_layout import exported_rank
from malt_jax.stages.names import EXPORT
from malt_jax.stages.policies import Weights, latest
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.atomic import atomic_directory
from malt_jax.storage.writers import is_writer, on_writer


def export(session: Session) -> None:
    """Writes `export/ROLE` and `export/ROLE/adapter` for every role, from its last checkpoint.

    A role that was not trained is exported as the base it is, without an adapter.
    """
    run, config = session.run, session.config
    # Before the journal is opened, since that of a finished stage does nothing.
    if _lacks_merged(session):
        session.progress.note("export: again, because it was written without merged models")
        on_writer(lambda: _reopen(session))
    identities = {
        role.name: latest(session, config.rounds - 1, policy_name(role.name, config.sharing))
        for role in session.pipeline.roles
    }
    roles = {role.name: role.config for role in session.pipeline.roles}
    weights = Weights(session)
    with session.journal(EXPORT) as journal:
        places = {name: run.export(name) for name in roles}
        for name, folder in journal.pending(places, folders=True):
            trained = weights(identities[name])
            # Other processes take part in `export_role` too, but only one of them makes the folder.
            target = atomic_directory(folder) if is_writer() else nullcontext(folder)
            with session.timed(f"{EXPORT} {name} ({identities[name]})"), target as building:
                export_role(
                    session.model,
                    trained if isinstance(trained, Adapter) else None,
                    building,
                    lora=config.training_of(name).lora,
                    params=trained if isinstance(trained, nnx.State) else None,
                    role=roles[name],
                    merged=config.export.merged,
                    card=model_card(_facts(session, name, identities)),
                )
    if repository := config.export.push_to_hub:
        on_writer(lambda: _push_once(session, repository))


def _lacks_merged(session: Session) -> bool:
    """Whether merged models are asked for and an earlier export wrote a role without one."""
    folders = manifest.sealed_units(session.run, EXPORT)
    # Only a merged model has a config.json; an adapter is in a folder of its own.
    return session.config.export.merged and any(not (f / "config.json").is_file() for f in folders)


def _exported_rank(session: Session, role: str) -> int | None:
    """The rank of a role's exported adapter; None after full fine-tuning."""
    train, spec = session.config.training_of(role), session.model.spec
    if train.full:
        return None
    return exported_rank(spec, targets_of(spec, train.lora), train.lora.rank)


def _facts(session: Session, role: str, identities: Mapping[str, str]) -> CardFacts:
    config, results = session.config, session.run.results
    return CardFacts(
        role=role,
        roles=[r.name for r in session.pipeline.roles],
        templates={r.name: r.template for r in session.pipeline.roles},
        base=config.model.path,
        revision=session.model.revision,
        license=base_license(session.model.folder),
        task=config.task.name,
        seed=config.seed,
        policies=identities,
        sampling={r.name: r.config for r in session.pipeline.roles},
        rank=_exported_rank(session, role),
        largest_rank=max(_exported_rank(session, r.name) or 0 for r in session.pipeline.roles),
        thinks=session.model.tokenizer.thoughts is not None,
        merged=config.export.merged,
        results=json.loads(results.read_text()) if results.exists() else None,
    )


def _reopen(session: Session) -> None:
    """Makes the export incomplete again, its upload as well."""
    manifest.reopen(session.run, EXPORT)
    manifest.amend(session.run, pushed_to=None)


def _push_once(session: Session, name: str) -> None:
    """Uploads the export unless it was; a failed upload is tried again by the same command."""
    if manifest.load(session.run).get("pushed_to") != name:
        _push(session, name)
        manifest.amend(session.run, pushed_to=name)


def _push(session: Session, name: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    for role in session.pipeline.roles:
        target = f"{name}-{role.name}"
        try:
            api.create_repo(target, private=True, exist_ok=True)
            api.upload_folder(repo_id=target, folder_path=session.run.export(role.name))
        except Exception as error:  # the hub's client lets many kinds of network errors through
            raise UserError(
                f"export.push_to_hub: {target}: {first_line(error)}; the export itself is whole in "
                f"{session.run.export(role.name)}."
            ) from error
