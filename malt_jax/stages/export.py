"""Export: every role in Hugging Face format, merged and as a PEFT adapter, with a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext

from flax import nnx

from malt_jax.errors import UserError
from malt_jax.export.cards import CardFacts, base_license, model_card
from malt_jax.export.role import export_role
from malt_jax.models.lora import Adapter
from malt_jax.stages.policies import last_phase, load, trainee
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.atomic import atomic_directory
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import first, writes

STAGE = "export"


def export(session: Session) -> None:
    """Writes `export/ROLE` and `export/ROLE/adapter` for every role, from its last checkpoint.

    A role that was not trained is exported as the base it is, without an adapter.
    """
    run, config = session.run, session.config
    again = _lacks_merged(session)
    if session.done(STAGE) and not again:
        return
    if again:
        session.progress.note("export: again, for it was written without merged models")
        first(lambda: manifest.reopen(run, STAGE))
    sealed = manifest.sealed_units(run, STAGE)
    identities = {
        role.name: last_phase(session, config.rounds - 1, trainee(session, role.name))
        for role in session.pipeline.roles
    }
    for role in session.pipeline.roles:
        folder = run.export(role.name)
        if folder in sealed:
            continue
        identity = identities[role.name]
        weights = load(session, identity)
        if writes() and folder.exists():
            kept = manifest.set_aside(run, folder)
            session.progress.note(f"{folder}: what stood here is in {kept} now")
        adapter = weights if isinstance(weights, Adapter) else None
        target = atomic_directory(folder) if writes() else nullcontext(folder)
        with session.timed(f"{STAGE} {role.name} ({identity})"), target as building:
            export_role(
                session.model,
                adapter,
                building,
                lora=config.train.lora,
                params=weights if isinstance(weights, nnx.State) else None,
                role=role.config,
                merged=config.export.merged,
                card=model_card(_facts(session, role.name, identities)),
            )
        session.seal(STAGE, [folder], done=False)
        raise_if_stopped()
    session.seal(STAGE, [])
    if name := config.export.push_to_hub:
        first(lambda: _push(session, name))


def _lacks_merged(session: Session) -> bool:
    """Whether merged models are asked for and an earlier export wrote a role without one."""
    folders = manifest.sealed_units(session.run, STAGE)
    return session.config.export.merged and any(not (f / "config.json").is_file() for f in folders)


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
        rank=None if config.train.full else config.train.lora.rank,
        merged=config.export.merged,
        results=json.loads(results.read_text()) if results.exists() else None,
    )


def _push(session: Session, name: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    for role in session.pipeline.roles:
        target = f"{name}-{role.name}"
        try:
            api.create_repo(target, private=True, exist_ok=True)
            api.upload_folder(repo_id=target, folder_path=session.run.export(role.name))
        except Exception as error:  # the hub's client lets many kinds of network errors through
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"export.push_to_hub: {target}: {first}; the export itself is whole in "
                f"{session.run.export(role.name)}."
            ) from error
