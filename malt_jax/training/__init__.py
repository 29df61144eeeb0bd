"""Role data -> trained weights: losses, log-probabilities, references, the step, the loop.

Importing this package imports no JAX; its modules do.
"""
