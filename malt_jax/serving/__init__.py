"""Serving: a trained chain behind an OpenAI-compatible endpoint, batched over requests."""
