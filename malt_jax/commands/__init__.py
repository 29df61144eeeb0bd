"""The commands of `malt`, one a file. Nothing heavy is imported before a command runs."""
