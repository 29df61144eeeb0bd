"""The method on a run directory: one file per stage, and what the stages share."""
