"""The report: one page that shows a run and every tree in it."""

from malt_jax.report.build import build_report

__all__ = ["build_report"]
