"""The result of an evaluation as one HTML file that needs nothing else."""

from .report import write_report
