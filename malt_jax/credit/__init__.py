"""Credit: what each turn of a tree contributed, as numbers at its nodes."""
