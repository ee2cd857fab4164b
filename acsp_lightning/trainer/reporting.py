"""Reporting a cut during a fit: log lines, warnings, scalars, and a folder of files."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from acsp_lightning.functional import WidthReason
from acsp_lightning.measure.complexity import measure_complexity
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
from acsp_lightning.trainer.averages import ends_averaged
from acsp_lightning.trainer.cut import FitSite
from acsp_lightning.trainer.loggers import log_cut, log_rolled_back, report_dir, takes_plots
from acsp_lightning.trainer.ranks import run_on_all_ranks

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
    run_on_all_ranks(lambda: _log(trainer, step, settings) if trainer.is_global_zero else None)


def _log(trainer: pl.Trainer, step: PruningStep, settings: PruningSettings) -> None:
    wanted = settings.report_plots and takes_plots(trainer)
    figures = _guarded(lambda: dict(summary_figures(step)), "drawn") if wanted else None
    log_cut(trainer, step, figures or {})


def announce_verdict(trainer: pl.Trainer, step: PruningStep, settings: PruningSettings) -> None:
    """Log what the accuracy guard did, and write the report of the cut again."""
    rank_zero_info(verdict_line(step))
    if step.verdict is not None and step.verdict.outcome is Outcome.UNJUDGED:
        rank_zero_warn(
            f"The fit ended before the cut after epoch {step.epoch} could be judged; it stays. "
            f"{_advice(trainer)}"
        )
    write_cut_report(trainer, step, settings, again=True)
    if step.rolled_back:
        log_rolled_back(trainer, step)


def announce_end(
    trainer: pl.Trainer,
    site: FitSite,
    steps: Sequence[PruningStep],
    missed: Collection[int],
    example: Example,
    settings: PruningSettings,
) -> list[PruningStep]:
    """Warn of cuts that were not made, log the table of a fit, and complete its reports.

    Args:
        trainer: at the end of the fit.
        site: the same fit.
        steps: its cuts.
        missed: captured epochs, as asked for, without a cut.
        example: arguments of forward.
        settings: of the callback.

    Returns:
        The steps as they stand: no cut is to be made again, and the last one that was not rolled back
        has the end of the fit.
    """
    warn_of_missed(trainer, missed)
    if not steps:
        return []
    end = FitEnd(
        measure_complexity(trainer.lightning_module, example.counted),
        count_classified(site, site.network, settings),
    )
    found = list(steps)
    found[-1] = _given_up(trainer, steps[-1])
    standing = [place for place, step in enumerate(found) if not step.rolled_back]
    if standing:
        found[standing[-1]] = replace(found[standing[-1]], end=end)
    averaged = ends_averaged(trainer)
    rank_zero_info("\n" + summary_table(found, end.complexity, end.accuracy, ends_averaged=averaged))
    for old, new in zip(steps, found, strict=True):
        if new is not old:
            write_cut_report(trainer, new, settings, again=True)
    return found


def warn_of_missed(trainer: pl.Trainer, epochs: Collection[int]) -> None:
    """Warn of cuts that were asked for and could not be made."""
    if epochs:
        rank_zero_warn(
            f"No cut was made after epoch {', '.join(map(str, sorted(epochs)))}: the fit ended before "
            f"it. {_advice(trainer)}"
        )


def _given_up(trainer: pl.Trainer, step: PruningStep) -> PruningStep:
    """The last cut of a fit that has ended: one that was to be made again is not."""
    if step.verdict is None or step.verdict.outcome is not Outcome.HALVED:
        return step
    rank_zero_warn(
        f"The cut after epoch {step.epoch} was rolled back, and the fit ended before it could be made "
        f"again at half the depth: its layers are as they were. {_advice(trainer)}"
    )
    return replace(step, verdict=replace(step.verdict, outcome=Outcome.LEFT))


def _advice(trainer: pl.Trainer) -> str:
    """What to do about a fit that was too short."""
    if trainer.should_stop:
        return (
            "A callback or the module stopped it (trainer.should_stop; EarlyStopping?): let that stop "
            "later, or cut earlier."
        )
    return "Train longer, or cut earlier."


def write_cut_report(
    trainer: pl.Trainer, step: PruningStep, settings: PruningSettings, *, again: bool = False
) -> None:
    """Write the record of a cut, its plots and its page; a fit goes on without what fails.

    One process writes, and the others wait for it here: in training they would in a collective.

    Args:
        trainer: in a fit.
        step: the record.
        settings: say where, and what.
        again: over what was written before, for a step with the same plots; nothing is said then.
    """
    run_on_all_ranks(lambda: _write(trainer, step, settings, again))


def _write(trainer: pl.Trainer, step: PruningStep, settings: PruningSettings, again: bool) -> None:
    if not trainer.is_global_zero:
        return
    folder = _guarded(lambda: report_dir(trainer, settings), "given a folder")
    if folder is None:
        return
    own = _guarded(lambda: write_step(step, folder), f"written to {folder}")
    if own is not None and settings.report_plots:
        draw = rewrite_page if again else draw_step
        page = _guarded(lambda: draw(step, own), f"drawn in {own}")
        if page is not None and not again:
            rank_zero_info(f"Report: {page}")


def _guarded(work: Callable[[], T], done: str) -> T | None:
    """The result of ``work``; None, with a warning, where it fails: no fit dies of its report."""
    return warn_on_error(work, f"The report of the cut could not be {done}", WITHOUT_REPORT)
