"""What a finished run exports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from malt_jax.checks import check, show

MAX_REPOSITORY = 96
"""The longest name of a repository of the hub, in characters."""


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


def check_repository(name: str, roles: Sequence[str]) -> None:
    """Raises UserError unless the hub could have the repositories that an upload makes.

    No check of the config itself: a run whose upload was refused by the hub is continued with
    another name.
    """
    for target in (*(f"{name}-{role}" for role in roles), f"{name}-data"):
        # The rule of the hub's own client, which asks nobody for it.
        owner, slash, own = target.rpartition("/")
        part = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
        good = (
            re.fullmatch(part, own)
            and (not slash or re.fullmatch(part, owner))
            and len(own) <= MAX_REPOSITORY
            and not re.search(r"--|\.\.", target)
            and not target.endswith(".git")
        )
        check(
            bool(good),
            f"export.push_to_hub: found {show(name)}, which makes the repository {show(target)}, "
            f"allowed: NAME or OWNER/NAME of letters, digits, `-`, `_` and `.`, without `--`, `..` "
            f"or a `-` or `.` at an end, in all at most {MAX_REPOSITORY} after the owner.",
        )
