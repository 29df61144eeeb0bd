"""Export: every trained role in Hugging Face format (placeholder until export lands)."""

from __future__ import annotations

from malt_jax.stages.session import Session


def export(session: Session) -> None:
    raise NotImplementedError
