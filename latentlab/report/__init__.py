"""The report of a study: one HTML file that opens from disk and fetches nothing."""

from latentlab.report.page import Report, build_report, write_report

__all__ = ["Report", "build_report", "write_report"]
