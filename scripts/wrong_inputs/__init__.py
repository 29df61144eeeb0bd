"""Wrong inputs of every kind, and what `malt` must say to each: see reliability_inputs.py."""

from __future__ import annotations

from wrong_inputs.configs import CONFIGS
from wrong_inputs.environment import ENVIRONMENT
from wrong_inputs.models import MODELS
from wrong_inputs.questions import FILES
from wrong_inputs.runs import RUNS
from wrong_inputs.world import Case, World

__all__ = ["CASES", "Case", "World"]

CASES = (*CONFIGS, *FILES, *MODELS, *RUNS, *ENVIRONMENT)
