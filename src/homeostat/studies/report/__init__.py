"""The report of a study: one HTML page, results.json and a summary, all from the same values."""

from homeostat.studies.report.saving import publish, save_report

__all__ = ["publish", "save_report"]
