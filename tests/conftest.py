"""The tests check dtypes, ranks and shapes more strictly than a run does.

Implicit promotion of dtypes or ranks is an error, and the annotated shapes of functions that take
arrays are compared with what they are given.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may use the network
# The test extra installs the TPU compiler, with which JAX would look for a TPU in every process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import gc
from collections.abc import Iterator

import jax
import jaxtyping
import pytest

from skips import pytest_addoption, pytest_sessionfinish  # noqa: F401 (hooks of pytest)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ARRAY_CODE = ("models", "sampling", "tree", "credit", "training", "data", "evaluation")
jaxtyping.install_import_hook([f"malt_jax.{name}" for name in ARRAY_CODE], "typechecking.checked")


def pytest_configure(config: pytest.Config) -> None:
    # Raised by flax's own type aliases in our signatures.
    ignored = "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
    config.addinivalue_line("filterwarnings", ignored)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
    """Frees what a file's tests have compiled.

    Each program maps its code into memory, and a process may have 65,530 mappings on Linux: with
    all programs of the suite, the compiler was seen to abort.
    """
    yield
    jax.clear_caches()
    gc.collect()
