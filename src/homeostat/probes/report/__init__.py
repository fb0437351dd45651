"""The audit as one page: a self-contained HTML file that opens without a network."""

from homeostat.probes.report.page import render_report

__all__ = ["render_report"]
