"""Trained roles out again: merged Hugging Face checkpoints and PEFT adapters."""
