"""Questions become trees: roles, prompts, breadth-first expansion, values, records."""
