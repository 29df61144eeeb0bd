"""A run directory that survives its machine: atomic writes, one writer, sealed artefacts, shards.

Nothing here imports jax.
"""
