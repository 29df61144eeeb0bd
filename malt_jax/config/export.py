"""What a finished run exports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportConfig:
    """The export in Hugging Face format."""

    merged: bool = True
    """Export a merged model for each role, beside its PEFT adapter."""
    dataset: bool = False
    """Write trees, role data and results as a dataset as well; always done for an upload."""
    push_to_hub: str | None = None
    """A hub name to upload roles and dataset to; nothing is uploaded without one."""
