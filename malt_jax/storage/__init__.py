"""Run directories that survive kills: atomic writes, one writer, files checked by their SHA-256.

Only `checkpoints` imports jax.
"""
