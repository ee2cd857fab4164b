"""The record of a cut, and its tables, plots and files."""

from acsp_lightning.report.drawing import png
from acsp_lightning.report.figures import summary_figures
from acsp_lightning.report.files import (
    draw_step,
    find_records,
    read_step,
    rewrite_page,
    write_report,
    write_step,
)
from acsp_lightning.report.step import PruningStep, reference_accuracy, time_taken
from acsp_lightning.report.tables import (
    headline,
    step_table,
    summary_table,
    trade_off_table,
    verdict_line,
)

__all__ = [
    "PruningStep",
    "draw_step",
    "find_records",
    "headline",
    "png",
    "read_step",
    "reference_accuracy",
    "rewrite_page",
    "step_table",
    "summary_figures",
    "summary_table",
    "time_taken",
    "trade_off_table",
    "verdict_line",
    "write_report",
    "write_step",
]
