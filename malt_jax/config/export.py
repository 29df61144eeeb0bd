"""The export at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportConfig:
    """The models that are exported, in Hugging Face format."""

    merged: bool = True
    """Whether each role gets a merged model besides its PEFT adapter."""
    push_to_hub: str | None = None
    """Hub name to upload the export to; default: nothing is uploaded."""
