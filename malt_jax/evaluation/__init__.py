"""Evaluation: systems compared on the same questions, with paired tests."""
