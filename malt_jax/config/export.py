"""What a finished run exports."""

from __future__ import annotations

from dataclasses import dataclass

from malt_jax.checks import check


@dataclass(frozen=True)
class ExportConfig:
    """The export in Hugging Face format."""

    merged: bool = True
    """Export a merged model for each role, beside its PEFT adapter."""
    dataset: bool = False
    """Write trees, role data and results as a dataset as well; always done for an upload."""
    push_to_hub: str | None = None
    """A hub name to upload roles and dataset to; nothing is uploaded without one."""

    def __post_init__(self):
        check(
            self.push_to_hub != "",
            "push_to_hub: found an empty text, as an unset variable gives; name a repository, or "
            "leave it out.",
        )
