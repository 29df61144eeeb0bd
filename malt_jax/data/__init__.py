"""Valued trees become each role's SFT examples and DPO pairs, and those become batches."""
