"""Names of the policies that a role can answer with, in chains, file names and tables."""

from __future__ import annotations

BASE = "base"
"""The base model, untrained."""
SFT = "sft"
"""The role after supervised fine-tuning only: the STaR pipeline of the publication."""
TRAINED = "malt"
"""The role after all of its configured training."""
STAR = "star"
"""The single-agent STaR baseline: the first role, fine-tuned on its drafts that are right."""
POLICIES = (BASE, SFT, TRAINED, STAR)
