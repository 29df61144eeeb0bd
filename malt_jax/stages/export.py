"""Export: every role in Hugging Face format, merged and as a PEFT adapter, with a model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

from flax import nnx

from malt_jax.data.role_data import policy_name
from malt_jax.errors import HubError, first_line
from malt_jax.evaluation.systems import system_without_temperature
from malt_jax.export.cards import CardFacts, base_license, model_card
from malt_jax.export.dataset import Round, write_dataset
from malt_jax.export.role import export_role
from malt_jax.models.lora import Adapter, targets_of
from malt_jax.models.peft_layout import exported_rank
from malt_jax.stages.credit import signals_file
from malt_jax.stages.names import EXPORT, label_stage
from malt_jax.stages.policies import WeightLoader, latest
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.atomic import atomic_directory
from malt_jax.storage.jsonl import read_json, read_lines
from malt_jax.storage.writers import is_writer, on_writer, wait_for_all

DATASET = "dataset"
"""The folder of the run that holds trees, role data and results for `load_dataset`."""


def export(session: Session) -> None:
    """Writes `export/ROLE` and `export/ROLE/adapter` for every role, from its last checkpoint.

    A role that was not trained is exported as the base it is, without an adapter. Where
    `export.dataset` asks for it, and before every upload, `dataset` is written with trees, role
    data and results.
    """
    run, config = session.run, session.config
    # Before the journal is opened, since that of a finished stage does nothing.
    lacks_merged, lacks_dataset = _lacks_merged(session), _lacks_dataset(session)
    # All processes have read the manifest before one of them changes it.
    wait_for_all("export looked up")
    if lacks_merged:
        session.progress.note("export: again, because it was written without merged models")
        on_writer(lambda: _reopen(session))
    elif lacks_dataset:
        session.progress.note("export: the dataset, without which it was written")
        # The roles stay sealed: what is still pending is the dataset, and an upload of all.
        manifest.verify(run, manifest.sealed_units(run, EXPORT))
        on_writer(lambda: manifest.amend(run, pushed_to=None))
        manifest.seal(run, EXPORT, (), done=False)
    identities = {
        role.name: latest(session, config.rounds - 1, policy_name(role.name, config.sharing))
        for role in session.pipeline.roles
    }
    roles = {role.name: role.config for role in session.pipeline.roles}
    weights = WeightLoader(session)
    with session.journal(EXPORT) as journal:
        places = {name: run.export(name) for name in roles}
        for name, folder in journal.pending(places, folders=True):
            trained = weights(identities[name])
            # Other processes take part in `export_role` too, but only one of them makes the folder.
            target = atomic_directory(folder) if is_writer() else nullcontext(folder)
            with session.timed(f"{EXPORT} {name} ({identities[name]})"), target as building:
                export_role(
                    session.bases.model_of(name),
                    trained if isinstance(trained, Adapter) else None,
                    building,
                    lora=config.training_of(name).lora,
                    params=trained if isinstance(trained, nnx.State) else None,
                    role=roles[name],
                    merged=config.export.merged,
                    card=model_card(_facts(session, name, identities)),
                )
        if _wants_dataset(session):
            dataset = run.path / DATASET
            for _ in journal.pending({"dataset": dataset}, folders=True):
                on_writer(lambda: _write_dataset(session, dataset))
    if repository := config.export.push_to_hub:
        on_writer(lambda: _push_once(session, repository), patient=True)


def _wants_dataset(session: Session) -> bool:
    wanted = session.config.export.dataset or session.config.export.push_to_hub is not None
    return wanted and bool(_labelled(session))


def _labelled(session: Session) -> list[int]:
    """The rounds whose trees are valued and whose signals are known."""
    rounds = range(session.config.rounds)
    return [n for n in rounds if manifest.stage_done(session.run, label_stage(n))]


def _lacks_merged(session: Session) -> bool:
    """Whether merged models are asked for and an earlier export has adapters alone."""
    # Only a merged model has a config.json; an adapter is in a folder of its own.
    folders = manifest.sealed_units(session.run, EXPORT)
    roles = [folder for folder in folders if folder.name != DATASET]
    return session.config.export.merged and any(not (f / "config.json").is_file() for f in roles)


def _lacks_dataset(session: Session) -> bool:
    """Whether a dataset is asked for and an earlier export was finished without it."""
    # Of an export that was interrupted, the dataset is still to come.
    if not manifest.stage_done(session.run, EXPORT) or not _wants_dataset(session):
        return False
    return session.run.path / DATASET not in manifest.sealed_units(session.run, EXPORT)


def _write_dataset(session: Session, folder: Path) -> None:
    config, run, labelled = session.config, session.run, _labelled(session)

    def rounds() -> Iterator[Round]:
        for number in labelled:
            path = signals_file(run, number)
            # Earlier versions labelled without signals.
            signals = {row["node_id"]: row for row in read_lines(path)} if path.exists() else {}
            yield Round(number, session.valued(session.forest(number)).trees, signals)

    results = [path for path in (run.results, run.results_table) if path.exists()]
    bases = ", ".join(dict.fromkeys(base.path for base in config.bases))
    facts = {"run": run.path.name, "task": config.task.name, "base": bases}
    data = run.data(labelled[-1], "any").parent
    for number in labelled:
        manifest.verify(run, manifest.sealed_units(run, label_stage(number)))
    with atomic_directory(folder) as building:
        write_dataset(building, rounds(), data, results, **facts)


def _exported_rank(session: Session, role: str) -> int | None:
    """The rank of a role's exported adapter; None after full fine-tuning."""
    train, spec = session.config.training_of(role), session.bases.model_of(role).spec
    if train.full:
        return None
    return exported_rank(spec, targets_of(spec, train.lora), train.lora.rank)


def _facts(session: Session, role: str, identities: Mapping[str, str]) -> CardFacts:
    config = session.config
    results = read_json(session.run.results, "remove it and run `malt eval`")
    for row in results["systems"] if results else ():
        # A card is of the systems, whatever their temperature.
        row["system"] = system_without_temperature(row)
    model = session.bases.model_of(role)
    own = {r.name: config.model_of(r.name) for r in session.pipeline.roles}
    return CardFacts(
        role=role,
        roles=[r.name for r in session.pipeline.roles],
        templates={r.name: r.template for r in session.pipeline.roles},
        base=own[role].path,
        revision=model.revision,
        license=base_license(model.folder),
        task=config.task.name,
        seed=config.seed,
        policies=identities,
        sampling={r.name: r.config for r in session.pipeline.roles},
        rank=_exported_rank(session, role),
        largest_rank=max(_exported_rank(session, n) or 0 for n in own if own[n] == own[role]),
        thinks=model.tokenizer.thoughts is not None,
        causal=not (model.spec.tower and model.spec.family == "mistral"),
        longest=model.spec.context if model.spec.rope.kind == "longrope" else None,
        merged=config.export.merged,
        results=results,
        bases={n: (base.path, session.bases.model_of(n).revision) for n, base in own.items()},
    )


def _reopen(session: Session) -> None:
    """Makes the export incomplete again, its upload as well."""
    # In this order, since a kill in between must leave something that is lacking.
    manifest.amend(session.run, pushed_to=None)
    manifest.reopen(session.run, EXPORT)


def _push_once(session: Session, name: str) -> None:
    """Uploads the export unless it was; a failed upload is tried again by the same command."""
    if manifest.load(session.run).get("pushed_to") != name:
        _push(session, name)
        manifest.amend(session.run, pushed_to=name)


def _push(session: Session, name: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    uploads = {
        f"{name}-{role.name}": (session.run.export(role.name), "model")
        for role in session.pipeline.roles
    }
    if (folder := session.run.path / DATASET).exists():
        uploads[f"{name}-data"] = folder, "dataset"
    for target, (folder, kind) in uploads.items():
        try:
            api.create_repo(target, repo_type=kind, private=True, exist_ok=True)
            api.upload_folder(repo_id=target, repo_type=kind, folder_path=folder)
        except Exception as error:  # the hub's client lets many kinds of network errors through
            raise HubError(
                f"export.push_to_hub: {target}: {first_line(error)}; the export itself is whole in "
                f"{folder}.",
                error,
            ) from error
