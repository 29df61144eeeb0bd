"""Which weights a (policy, role) means, from the checkpoints of a run.

Policies: `base`, the untrained model; `sft`, after SFT only; `malt`, after everything configured;
`star`, the single agent of the STaR baseline. A role that had nothing to learn from keeps the
weights it had before, and its identity says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.config.run import Config
from malt_jax.evaluation.systems import FURTHER_TURNS, speaker
from malt_jax.stages.session import Session, train_stage
from malt_jax.storage import manifest
from malt_jax.tree.policies import BASE, STAR

if TYPE_CHECKING:
    from malt_jax.training.step import Trainable

SHARED = "shared"
"""The one trainee of `sharing: shared`, whose weights all roles use."""
PHASES = ("sft", "dpo")


def trainee(session: Session, role: str) -> str:
    """Whose weights a role answers with: its own, or the shared ones."""
    return SHARED if session.config.sharing == "shared" else role


def trainees(config: Config) -> list[str]:
    """The names of all weights the roles learn, in the order of their training."""
    if config.sharing == "shared":
        return [SHARED]
    return [role.name for role in config.pipeline.roles]


def weights_folder(session: Session, round: int, name: str, phase: str) -> Path:
    """Where a phase leaves its weights."""
    return session.run.checkpoint(round, name) / phase


def last_phase(session: Session, round: int, name: str, phases: tuple[str, ...] = PHASES) -> str:
    """Identity of a trainee's weights after a round: `round/name/phase`, or `base`.

    Goes back to earlier rounds where the round trained nothing.
    """
    for earlier in range(round, -1, -1):
        for phase in reversed(phases):
            stage = train_stage(earlier, name, phase)
            folder = weights_folder(session, earlier, name, phase)
            if folder in manifest.sealed_units(session.run, stage):
                return f"{earlier:03d}/{name}/{phase}"
        phases = PHASES  # an earlier round's weights are those it ended with
    return BASE


def load(session: Session, identity: str) -> Trainable | None:
    """The weights of an identity, checked against their seal; None for the base."""
    if identity == BASE:
        return None
    from malt_jax.training.checkpoints import load_trainable
    from malt_jax.training.loop import FINAL

    round, name, phase = identity.split("/")
    folder = weights_folder(session, int(round), name, phase)
    manifest.verify(session.run, [folder])
    return load_trainable(folder / FINAL, session.fresh_weights(name))


def adapters_of_round(session: Session, round: int) -> dict[str, Any]:
    """Each role's weights after a round; round -1 is the base."""
    cache: dict[str, Any] = {}
    adapters = {}
    for role in session.pipeline.roles:
        identity = BASE if round < 0 else last_phase(session, round, trainee(session, role.name))
        if identity not in cache:
            cache[identity] = load(session, identity)
        adapters[role.name] = cache[identity]
    return adapters


def policy_identities(session: Session) -> dict[tuple[str, str], str]:
    """The identity of the weights that each (policy, turn) of the last round stands for."""
    last = session.config.rounds - 1
    names = [role.name for role in session.pipeline.roles]
    identities = {}
    for turn in (*names, *FURTHER_TURNS):
        name = trainee(session, speaker(turn, session.pipeline).name)
        identities["base", turn] = BASE
        identities["sft", turn] = last_phase(session, last, name, ("sft",))
        identities["malt", turn] = last_phase(session, last, name)
        identities["star", turn] = last_phase(session, last, STAR, ("sft",))
    return identities
