"""Write the report of a comparison (compare.md, compare.png and report.html) from compare.json alone."""

from __future__ import annotations

from pathlib import Path

from mt2st_fast.files import write_atomically
from mt2st_fast.runs.comparison_plots import plot_comparison
from mt2st_fast.runs.comparison_schema import Comparison
from mt2st_fast.runs.comparison_tables import render
from mt2st_fast.runs.json_files import read_json
from mt2st_fast.runs.pages import comparison_page
from mt2st_fast.runs.plots import png

COMPARISON = "compare.json"
REPORT_FILES = ("compare.md", "compare.png", "report.html")


def write_comparison_report(folder: Path) -> Comparison:
    """Write the report of the comparison in `folder` and return the comparison; nothing is written before all is made.

    Raises InputError where there is no comparison, and KeyError, TypeError or ValueError for another content of the
    file.
    """
    comparison: Comparison = read_json(folder / COMPARISON, "compare again")
    files = {
        "compare.md": render(comparison).encode("utf-8", "replace"),
        "compare.png": png(plot_comparison(comparison)),
        "report.html": comparison_page(comparison),
    }
    for name, written in files.items():
        write_atomically(folder / name, written)
    return comparison
