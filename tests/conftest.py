"""The tests check dtypes, ranks and shapes more strictly than a run does, and compile faster.

Implicit promotion of dtypes or ranks is an error, and the annotated shapes of functions that take
arrays are compared with what they are given.

Programs are compiled without LLVM's optimisations, and once for all processes of all sessions,
because most of the suite's time would otherwise be spent on compiling. The passes of XLA are the
same. What is lost: the machine code is not that of a user's run, so a fault of LLVM's, or bits that
depend on how it vectorises a shape, would go unnoticed. The tests that use `optimized` look for
these: those of the sampler's invariances. Loops are made by XLA's older emitter and in four parts,
not 32: the newer one was seen to take three times as long for programs of this size.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may use the network
# The test extra installs the TPU compiler, with which JAX would look for a TPU in every process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Set by variables, so that the processes that tests start have them too.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# XLA ends a process at a flag that it does not know, so later versions of it do without these.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=4",
    )
# Otherwise each of these processes would compile all modules of the checkout.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import gc
from collections.abc import Iterator

import hypothesis
import jax
import jaxtyping
import pytest

import typechecking
from durations import pytest_terminal_summary  # noqa: F401 (a hook of pytest)
from skips import pytest_addoption, pytest_sessionfinish  # noqa: F401 (hooks of pytest)

# Tracing makes many small objects, which Python would look through every 700 of them.
gc.set_threshold(50_000, 20, 100)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# An example may take any time: on a busy machine the default of 0.2 s was seen to fail tests.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

ARRAY_CODE = ("models", "sampling", "tree", "credit", "training", "data", "evaluation")
jaxtyping.jaxtyped = typechecking.jaxtyped
jaxtyping.install_import_hook([f"malt_jax.{name}" for name in ARRAY_CODE], "typechecking.checked")


LONG = (
    "pod", "run", "combinations", "phases_run", "training_sharding", "disk", "docs", "plan",
    "options", "algorithm", "models_run", "offline", "mirror_unfinished", "serving", "evaluations",
    "models_families", "training_golden", "sampling_mesh", "models_sharding", "stress",
    "resume_strict", "wrong_inputs", "tree_attention",
)  # fmt: skip
"""Files that take longest, which are begun first: one of them at the end would keep one of two
workers busy while the other has nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


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


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Compiles this module's programs as in a user's run, also in the processes it starts."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")
        yield
    jax.config.update("jax_disable_most_optimizations", before)
