"""Valued trees become what each role learns from, by phase, and that becomes batches."""
