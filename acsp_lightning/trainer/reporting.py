"""Reporting a cut during a fit: log lines, warnings, scalars, and a folder of files."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from acsp_lightning.functional import WidthReason
from acsp_lightning.measure.complexity import Complexity, measure_complexity
from acsp_lightning.pipeline import count_classified
from acsp_lightning.progress import warn_on_error
from acsp_lightning.report import (
    PruningStep,
    draw_step,
    headline,
    rewrite_page,
    summary_figures,
    summary_table,
    verdict_line,
    write_step,
)
from acsp_lightning.report.step import FitEnd, Outcome
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.example import Example
from acsp_lightning.trainer.averaging import ends_averaged
from acsp_lightning.trainer.cut import FitSite
from acsp_lightning.trainer.loggers import log_cut, log_rolled_back, takes_plots

T = TypeVar("T")

WITHOUT_REPORT = "Training goes on without it."


def announce_cut(trainer: pl.Trainer, step: PruningStep, settings: PruningSettings) -> None:
    """Log a cut in one line, warn of layers without a knee, and write the report."""
    rank_zero_info(headline(step))
    reasons = {name: selection.reason for name, selection in step.selections.items()}
    if WidthReason.NO_NETWORK_KNEE in reasons.values():
        rank_zero_warn(
            "The network's damage over its FLOPs has no knee (a few small layers have too few steps for "
            "one); without one every channel is kept. Set selection.keep or selection.flops to say how "
            "much to cut."
        )
    whole = [name for name, reason in reasons.items() if reason is WidthReason.NO_KNEE]
    if whole:
        rank_zero_warn(
            f"The curve of {', '.join(whole)} has no knee; without one every channel is kept. Set "
            "selection.keep or selection.flops to say how much to cut."
        )
    write_cut_report(trainer, step, settings)
    if trainer.is_global_zero:
        wanted = settings.report_plots and takes_plots(trainer)
        figures = _guarded(lambda: dict(summary_figures(step)), "drawn") if wanted else None
        log_cut(trainer, step, figures or {})


def announce_verdict(trainer: pl.Trainer, step: PruningStep, settings: PruningSettings) -> None:
    """Log what the accuracy guard did, and write the report of the cut again."""
    rank_zero_info(verdict_line(step))
    if step.verdict is not None and step.verdict.outcome is Outcome.UNJUDGED:
        rank_zero_warn(
            f"The fit ended before the cut after epoch {step.epoch} could be judged; it stays. Train "
            "longer, or cut earlier."
        )
    write_cut_report(trainer, step, settings)
    if step.rolled_back:
        log_rolled_back(trainer, step)


def announce_end(
    steps: Sequence[PruningStep], final: Complexity, accuracy: float | None, *, averaged: bool
) -> None:
    """Sum up the cuts of a fit that were not rolled back, as a table.

    Args:
        steps: the cuts.
        final: complexity of the network at the end.
        accuracy: its accuracy.
        averaged: whether a fit ended with averaged weights, though validation saw others.
    """
    standing = [step for step in steps if not step.rolled_back]
    if standing:
        rank_zero_info("\n" + summary_table(standing, final, accuracy, ends_averaged=averaged))


def sum_up(
    trainer: pl.Trainer,
    site: FitSite,
    steps: Sequence[PruningStep],
    example: Example,
    settings: PruningSettings,
) -> list[PruningStep]:
    """Measure the network at the end of a fit, log the table, and write the last report again.

    Returns:
        The steps, the last one that was not rolled back with the end of the fit.
    """
    end = FitEnd(
        measure_complexity(trainer.lightning_module, example.counted),
        count_classified(site, site.network, settings),
    )
    announce_end(steps, end.complexity, end.accuracy, averaged=ends_averaged(trainer))
    standing = [place for place, step in enumerate(steps) if not step.rolled_back]
    found = list(steps)
    if not standing:
        return found
    step = found[standing[-1]] = replace(found[standing[-1]], end=end)
    folder = _report_dir(trainer, settings)
    if folder is not None:
        own = _guarded(lambda: write_step(step, folder), f"written to {folder}")
        if own is not None and settings.report_plots:
            _guarded(lambda: rewrite_page(step, own), f"written to {own}")
    return found


def announce_missed(epochs: Collection[int]) -> None:
    """Warn of cuts that were asked for and could not be made."""
    if epochs:
        rank_zero_warn(
            f"No cut was made after epoch {', '.join(map(str, sorted(epochs)))}: the fit ended before "
            "it. Train longer, or cut earlier."
        )


def write_cut_report(trainer: pl.Trainer, step: PruningStep, settings: PruningSettings) -> None:
    """Write the record of a cut, its plots and its page; a fit goes on without what fails."""
    folder = _report_dir(trainer, settings)
    if folder is None:
        return
    own = _guarded(lambda: write_step(step, folder), f"written to {folder}")
    if own is not None and settings.report_plots:
        page = _guarded(lambda: draw_step(step, own), f"drawn in {own}")
        if page is not None:
            rank_zero_info(f"Report: {page}")


def _report_dir(trainer: pl.Trainer, settings: PruningSettings) -> Path | None:
    """The folder of all reports on the process that writes them; None on others, or if it fails."""
    if not trainer.is_global_zero:
        return None
    return _guarded(
        lambda: Path(settings.report_dir or Path(_log_dir(trainer), "acsp")), "given a folder"
    )


def _log_dir(trainer: pl.Trainer) -> str:
    """The first logger's folder; unlike ``trainer.log_dir`` no matter of all processes."""
    logger = trainer.logger
    found = None if logger is None else logger.log_dir or logger.save_dir
    return found or trainer.default_root_dir


def _guarded(work: Callable[[], T], done: str) -> T | None:
    """The result of ``work``; None, with a warning, where it fails: no fit dies of its report."""
    return warn_on_error(work, f"The report of the cut could not be {done}", WITHOUT_REPORT)
