"""malt-jax: multi-agent LLM training (MALT, arXiv 2412.01928) in pure JAX."""

__version__ = "0.1.0"
