"""Answering: a trained chain answers questions, in batches, one turn of all of them at a time."""
