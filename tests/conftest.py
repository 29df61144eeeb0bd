"""Numbers and shapes are checked harder in the tests than at run time.

No silent promotion of dtypes or ranks, and every annotated shape of the functions that take arrays
is compared with what is passed.
"""

from __future__ import annotations

import os

import jax
import jaxtyping
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ARRAY_CODE = ("models", "sampling", "tree", "training", "data", "evaluation")
jaxtyping.install_import_hook([f"malt_jax.{name}" for name in ARRAY_CODE], "typechecking.checked")


def pytest_configure(config: pytest.Config) -> None:
    # Raised by flax's own aliases in our signatures.
    ignored = "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
    config.addinivalue_line("filterwarnings", ignored)
