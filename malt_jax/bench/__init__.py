"""The project's own benchmarks, measured beside the reference implementations in the same run."""
