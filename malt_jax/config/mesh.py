"""Config of the device mesh. Apart from the code that builds it: reading a config needs no JAX."""

from __future__ import annotations

from dataclasses import dataclass, field

from malt_jax.checks import check


@dataclass(frozen=True)
class MeshConfig:
    """How devices share the work; 0 lets the run choose."""

    data: int = 0
    """Replicas of the weights; the rows of a batch are split over them."""
    fsdp: int = 0
    """Parts that each weight is split into and gathered from when used; rows are split as well."""
    tensor: int = 0
    """Parts that attention heads and MLP channels are split into."""
    expert: int = 0
    """Parts that the experts of a mixture are split into; rows are split as well."""
    slices: int = 0
    """TPU slices joined by the data-centre network; replicas of everything else."""
    rules: dict[str, str] = field(default_factory=dict)
    """Logical axis -> comma-separated mesh axes; overrides the built-in rules."""
    coordinator: str | None = None
    """host:port of process 0; default: detected on Cloud TPU, GKE and Slurm, or one process."""
    processes: int | None = None
    """How many processes the run has."""
    process: int | None = None
    """This process's index."""
    heartbeat: int = 100
    """Seconds without a sign of life after which a process counts as dead and the others end."""
    hang: int = 1500
    """Seconds that processes wait for one that hangs, before all end and name it; 0: no limit."""

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor", "expert", "slices"):
            value = getattr(self, name)
            check(value >= 0, f"{name}: found {value}, allowed: 0 (auto) or more.")
        check(
            self.heartbeat >= 10, f"heartbeat: found {self.heartbeat}, allowed: 10 or more seconds."
        )
        check(self.hang >= 0, f"hang: found {self.hang}, allowed: 0 (no limit) or more seconds.")
