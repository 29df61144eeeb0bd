"""Variables and streams of the environment that a run cannot work with."""

from __future__ import annotations

from wrong_inputs.world import case, flag

ENVIRONMENT = (
    case(
        "environment: a platform without a plugin", flag(), "cuda", "plugin", JAX_PLATFORMS="cuda"
    ),
    case("environment: no such platform", flag(), "cdua", "JAX_PLATFORMS", JAX_PLATFORMS="cdua"),
    case("environment: a platform without a driver", flag(), "rocm", JAX_PLATFORMS="rocm"),
    case("environment: half a list of platforms", flag(), "JAX_PLATFORMS", JAX_PLATFORMS=",,"),
    case("environment: x64 is neither yes nor no", flag(), "JAX_ENABLE_X64", JAX_ENABLE_X64="so"),
    case("environment: no such PRNG", flag(), "DEFAULT_PRNG", JAX_DEFAULT_PRNG_IMPL="dice"),
    case("environment: devices in words", flag(), "JAX_NUM_CPU", JAX_NUM_CPU_DEVICES="two"),
    case("environment: an unknown flag of XLA", flag(), "XLA_FLAGS", XLA_FLAGS="--xla_no_such=1"),
    case("environment: warnings are errors", flag(), "PYTHONWARNINGS", PYTHONWARNINGS="error"),
    case(
        "environment: warnings of one kind are errors",
        flag(),
        "error::UserWarning",
        PYTHONWARNINGS="default,error::UserWarning",
    ),
    case("environment: half a place among processes", flag(), "mesh.", MALT_PROCESSES="2"),
    case(
        "environment: a place of no number",
        flag(),
        "MALT_PROCESS",
        MALT_PROCESSES="two",
        MALT_PROCESS="0",
        MALT_COORDINATOR="a:1",
    ),
    case(
        "environment: tasks of Slurm that are none",
        flag(),
        "SLURM_NTASKS",
        SLURM_JOB_ID="1",
        SLURM_NTASKS="4(x2)",
    ),
)
