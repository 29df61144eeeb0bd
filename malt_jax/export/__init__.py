"""Trained roles in Hugging Face formats: merged checkpoints, PEFT adapters and model cards."""
