"""What a finished run exports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportConfig:
    """The export in Hugging Face format."""

    merged: bool = True
    """Export a merged model for each role, beside its PEFT adapter."""
    push_to_hub: str | None = None
    """A hub name to upload the export to; nothing is uploaded without one."""
