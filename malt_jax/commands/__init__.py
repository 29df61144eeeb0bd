"""The commands of `malt`, one per file. Nothing heavy is imported before a command runs."""
