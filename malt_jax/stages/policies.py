"""The weights that each (policy, role) stands for, from the checkpoints of a run.

`malt_jax.tree.policies` lists the policies. A role that had nothing to learn from keeps the weights
it had before, and its identity says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from malt_jax.config.pipeline import PHASES, split_phases
from malt_jax.data.role_data import policy_name
from malt_jax.evaluation.systems import FURTHER_TURNS, speaker
from malt_jax.stages.bases import ByRole
from malt_jax.stages.names import train_stage
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.checkpoints import CheckpointFolder
from malt_jax.tree.policies import BASE, SFT, STAR, TRAINED

if TYPE_CHECKING:
    from malt_jax.config.run import Config
    from malt_jax.training.step import Trainable


ADAPTER = "adapter"
"""First part of the identity of weights that were imported, `adapter/name`."""


def phases_of(config: Config, name: str) -> tuple[str, ...]:
    """The phases of a policy's training: all that one of its roles learns by, SFT and DPO always.

    Those two are sealed without weights where no role learns by them.
    """
    used = {"sft", "dpo"}
    for role in config.pipeline.roles:
        if policy_name(role.name, config.sharing) == name:
            used.update(split_phases(role.train))
    return tuple(phase for phase in PHASES if phase in used)


def weights_folder(session: Session, round: int, name: str, phase: str) -> Path:
    """Where a phase leaves its weights."""
    return session.run.checkpoint(round, name) / phase


def latest(session: Session, round: int, name: str, phases: tuple[str, ...] = PHASES) -> str:
    """Identity of a policy's weights after a round: `round/name/phase`, or `base`.

    Goes back to earlier rounds if the round trained nothing.
    """
    for earlier in range(round, -1, -1):
        # The last phase first: each began where the one before ended, so its weights hold both.
        for phase in reversed(phases):
            stage = train_stage(earlier, name, phase)
            folder = weights_folder(session, earlier, name, phase)
            # Sealed, and not only present: the folder of a phase in progress is there as well.
            if folder in manifest.sealed_units(session.run, stage):
                return f"{earlier:03d}/{name}/{phase}"
        phases = PHASES  # an earlier round's weights are those it ended with
    return start(session, name)


def start(session: Session, name: str) -> str:
    """Identity of the weights that a policy has before any training: its adapter's, or the base."""
    return f"{ADAPTER}/{name}" if session.start_adapter(name) else BASE


class WeightLoader:
    """Loads the weights of an identity when they are asked for.

    Adapters are small, so they are all kept. Of full weights only those asked for last are kept: a
    caller that works policy by policy holds one set beside the base. `keep_all` keeps them all, for
    a caller that alternates between policies.
    """

    def __init__(self, session: Session, *, keep_all: bool = False):
        self._session = session
        self._keeps_all = keep_all or not session.config.train.full
        self._loaded: dict[str, Trainable | None] = {BASE: None}

    def __call__(self, identity: str) -> Trainable | None:
        """The weights, checked against their seal; None for the base."""
        if identity not in self._loaded:
            # Forgotten before the next set is loaded, so that two never lie in memory at once.
            if not self._keeps_all:
                self._loaded = {BASE: None}
            self._loaded[identity] = self._load(identity)
        return self._loaded[identity]

    def check(self, identities: Iterable[str]) -> None:
        """Verifies the files of all these weights, so that damage is found before any work."""
        trained = [i for i in set(identities) if i != BASE and not i.startswith(f"{ADAPTER}/")]
        folders = [self._folder(identity) for identity in trained]
        manifest.verify(self._session.run, folders)

    def _folder(self, identity: str) -> Path:
        round, name, phase = identity.split("/")
        return weights_folder(self._session, int(round), name, phase)

    def _load(self, identity: str) -> Trainable:
        from malt_jax.training.saver import FINAL, load_weights

        if identity.startswith(f"{ADAPTER}/"):
            return self._session.initial_weights(identity.split("/")[1])
        _, name, _ = identity.split("/")
        folder = self._folder(identity)
        manifest.verify(self._session.run, [folder])
        # For structure, shapes and placement; its values are replaced.
        like = self._session.initial_weights(name)
        return load_weights(CheckpointFolder(folder), FINAL, like)


def policies_after(
    session: Session, round: int, *, keep_all: bool = False
) -> ByRole[Trainable | None]:
    """Each role's weights after a round, None for the base's; those of round -1 are the base's.

    Their files are verified here. `keep_all`: see `WeightLoader`.
    """
    sharing = session.config.sharing
    roles = [role.name for role in session.pipeline.roles]
    identities = {r: latest(session, round, policy_name(r, sharing)) for r in roles}
    weights = WeightLoader(session, keep_all=keep_all)
    weights.check(identities.values())
    return ByRole(roles, lambda role: weights(identities[role]))


def identities(session: Session) -> dict[tuple[str, str], str]:
    """The identity of the weights that each (policy, turn) of a system answers with."""
    last = session.config.rounds - 1
    names = [role.name for role in session.pipeline.roles]
    meant: dict[tuple[str, str], str] = {}
    for turn in (*names, *FURTHER_TURNS):
        # A further turn, such as `judge`, answers with the weights of the role that speaks it.
        name = policy_name(speaker(turn, session.pipeline).name, session.config.sharing)
        meant[BASE, turn] = start(session, name)
        meant[SFT, turn] = latest(session, last, name, ("sft",))
        meant[TRAINED, turn] = latest(session, last, name)
        meant[STAR, turn] = latest(session, last, STAR, ("sft",))
    return meant
