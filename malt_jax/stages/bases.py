"""The base models of a run: the run's own, and those that roles name for themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from malt_jax.config.model import ModelConfig
from malt_jax.errors import UserError
from malt_jax.evaluation.systems import speaker
from malt_jax.hashing import fingerprint
from malt_jax.progress import counted
from malt_jax.storage import manifest
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import wait_for_all

if TYPE_CHECKING:
    from malt_jax.config.run import Config
    from malt_jax.models.exchange import Exchange
    from malt_jax.models.model import Model
    from malt_jax.sampling.sampler import Sampler
    from malt_jax.sampling.stats import Stats
    from malt_jax.stages.session import Session
    from malt_jax.storage.rundir import RunDir

T = TypeVar("T")


class Bases:
    """The model and the sampler of each role: the only place where they are looked up.

    Names are those of roles, of further turns such as `judge`, and of policies. The first role has
    the run's model.
    """

    def __init__(self, session: Session, shared: Bases | None):
        """`shared`: those of another session; what it has as well is taken from there."""
        self._session, self._shared = session, shared
        self._models: dict[ModelConfig, Model] = {}
        self._samplers: dict[ModelConfig, Sampler] = {}

    def model_of(self, name: str) -> Model:
        return self.model(self._config_of(name))

    def sampler_of(self, name: str) -> Sampler:
        return self.sampler(self._config_of(name))

    def each(self, of: Callable[[str], T]) -> T | Mapping[str, T]:
        """What `of` returns for each role, by name; once for all roles if they share one base."""
        names = [role.name for role in self._session.pipeline.roles]
        return of(names[0]) if self._alone else ByRole(names, of)

    @property
    def _alone(self) -> bool:
        return len(self._session.config.bases) == 1

    def _config_of(self, name: str) -> ModelConfig:
        return self._session.config.model_of(speaker(name, self._session.pipeline).name)

    def model(self, config: ModelConfig) -> Model:
        """A base model; raises UserError if it is not the one that the run began with."""
        if config not in self._models:
            shared = self._shared if config in self._held else None
            model = shared.model(config) if shared else self.load(config)
            # What another session has loaded is recorded in this run as well.
            self._record(config, model)
            self._models[config] = model
        return self._models[config]

    def sampler(self, config: ModelConfig) -> Sampler:
        if config not in self._samplers:
            model, shared = self.model(config), self._alike if config in self._held else None
            made = shared.sampler(config) if shared else self.make_sampler(model)
            self._samplers[config] = made
        return self._samplers[config]

    @cached_property
    def stats(self) -> Stats:
        """The figures of all samplers together."""
        from malt_jax.sampling.stats import Stats

        return self._alike.stats if self._alike else Stats()

    @property
    def _held(self) -> tuple[ModelConfig, ...]:
        """The bases that the other session has."""
        return self._shared._session.config.bases if self._shared else ()

    @property
    def _alike(self) -> Bases | None:
        """Those of the other session if it samples as this one does."""
        shared = self._shared
        alike = shared and shared._session.config.sampler == self._session.config.sampler
        return shared if alike else None

    def make_sampler(self, model: Model, on_chunk: Callable[[], None] | None = None) -> Sampler:
        """A sampler as the config says, which adds to the figures of all."""
        from malt_jax.sampling.sampler import Sampler

        session = self._session

        def between_chunks() -> None:
            # A stop request abandons the block in progress; finished blocks are saved already.
            raise_if_stopped()
            if session.run is not None:
                session.run.show_life()
            session.profiler.between_steps()

        return Sampler(
            model, session.config.sampler, session.mesh, on_chunk or between_chunks, self.stats
        )

    def load(self, config: ModelConfig) -> Model:
        """Reads a model, in exchange for the one on the device where they take turns."""
        from malt_jax.models.mesh import rules as mesh_rules
        from malt_jax.models.model import load_model

        session, exchange = self._session, self.exchange

        def read() -> Model:
            return load_model(
                config.path,
                revision=config.revision,
                dtype=None if config.dtype == "auto" else config.dtype,
                mesh=session.mesh,
                rules=mesh_rules(session.config.mesh),
                quantize=config.quantize,
            )

        alone = session.config.bases == (config,)
        with session.timed("load the model" if alone else f"load {config.path}"):
            return exchange.add(read, config.quantize) if exchange else read()

    @cached_property
    def exchange(self) -> Exchange | None:
        """What holds one model at a time, where several do not fit on the device together."""
        if self._shared and self._shared.exchange:
            return self._shared.exchange
        # What another session holds stays on the device; only what it lacks can take turns.
        own = [config for config in self._session.config.bases if config not in self._held]
        if len(own) < 2:
            return None
        from malt_jax.models.exchange import Exchange, fit_together, memory_here

        together = fit_together([base_bytes(c) for c in (*self._held, *own)], memory_here())
        how = (
            "resident together" if together else "one at a time, each read again when it is needed"
        )
        self._session.progress.note(f"{counted(len(own), 'base model')}: {how}")
        return None if together else Exchange()

    def _record(self, config: ModelConfig, model: Model) -> None:
        facts = {
            "path": config.path,
            "revision": model.revision,
            "fingerprint": model.fingerprint,
            "dtype": str(model.dtype),
        }
        if config == self._session.config.model:
            self._record_model(facts | self._adapter_facts())
        else:
            self._record_own(config, facts)

    def _record_model(self, facts: dict[str, Any]) -> None:
        """Records the hashes of the run's own base and of the adapters that roles start from."""
        run = self._session.run
        known = manifest.load(run).get("model")
        # All processes have read the manifest before one of them adds to it.
        wait_for_all("model looked up")
        if known is None:
            manifest.amend(run, model=facts)
        elif known["fingerprint"] != facts["fingerprint"]:
            raise UserError(
                f"model.path: the weights in {facts['path']} are not those this run began with "
                "(their SHA-256 differs); restore them or choose another --output-dir."
            )
        elif known.get("adapters") != facts.get("adapters"):
            raise UserError(
                "pipeline.roles: an adapter that a role starts from is not the one this run began "
                "with (its SHA-256 differs); restore it or choose another --output-dir."
            )
        elif known.get("dtype", facts["dtype"]) != facts["dtype"]:
            self._session.progress.note(
                f"WARNING: this run began in {known['dtype']} and goes on in {facts['dtype']} "
                "(model.dtype: auto), whose roundings differ"
            )

    def _record_own(self, config: ModelConfig, facts: dict[str, Any]) -> None:
        """Records the hash of a base under the names of its roles."""
        run, session = self._session.run, self._session
        names = [r.name for r in session.pipeline.roles if self._config_of(r.name) == config]
        known = manifest.load(run).get("bases", {})
        changed = [n for n in names if known.get(n, facts)["fingerprint"] != facts["fingerprint"]]
        if changed:
            raise UserError(
                f"pipeline.roles: the weights in {facts['path']}, the model of "
                f"{', '.join(changed)}, are not those this run began with (their SHA-256 differs); "
                "restore them or choose another --output-dir."
            )
        if not known.keys() >= set(names):
            manifest.amend(run, bases={**known, **dict.fromkeys(names, facts)})

    def _adapter_facts(self) -> dict[str, Any]:
        """The hash of each adapter that a role starts from, or nothing where none does."""
        from malt_jax.models.hub import ADAPTER_FILES, adapter_folder

        hashes = {}
        for role in self._session.config.pipeline.roles:
            if role.adapter is not None:
                folder = adapter_folder(role.adapter)
                hashes[role.name] = fingerprint([folder / name for name in ADAPTER_FILES])
        return {"adapters": hashes} if hashes else {}


class ByRole(Mapping[str, T]):
    """Something of every role, made when it is asked for; further turns have theirs too."""

    def __init__(self, names: list[str], of: Callable[[str], T]):
        self._names, self._of = names, of

    def __getitem__(self, name: str) -> T:
        return self._of(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Unlike `Mapping.get`, lets an error while it is made through."""
        return self[name] if name in self._names else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_one_device(config: Config, devices: int) -> None:
    """Refuses base models of roles' own on several devices."""
    if len(config.bases) > 1 and devices > 1:
        raise UserError(
            "pipeline.roles: base models of roles' own (pipeline.roles.N.model) run on one device, "
            f"and here are {devices}; show the process one of them (CUDA_VISIBLE_DEVICES), or give "
            "all roles the run's model."
        )


def facts_of_bases(run: RunDir) -> dict[str, Any]:
    """What a run's manifest says of its models, for a run inside it that uses the same ones."""
    known = manifest.load(run)
    return {name: known[name] for name in ("model", "bases") if known.get(name)}


def base_hashes(facts: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of `facts_of_bases` that are known: the model's, and those of roles by name."""
    every = {"": facts.get("model"), **facts.get("bases", {})}
    return {name: base["fingerprint"] for name, base in every.items() if base}


def base_bytes(config: ModelConfig) -> int:
    """Bytes of a base's weights on the devices here, from its config.json alone."""
    import jax

    from malt_jax.models.hf_config import read_spec
    from malt_jax.models.hub import local_folder
    from malt_jax.models.weights import weight_bytes

    folder, _ = local_folder(config.path, config.revision)
    # `auto` is what `load_model` makes of it: float32 on a CPU, bfloat16 elsewhere.
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"
    return weight_bytes(read_spec(folder), dtype, config.quantize)
