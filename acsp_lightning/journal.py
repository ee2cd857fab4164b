"""What people hear of a cut during a fit: tables on the console, warnings, and a record in a file."""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from acsp_lightning.complexity import Complexity
from acsp_lightning.functional import SelectionConfig, WidthReason
from acsp_lightning.guard import Outcome
from acsp_lightning.report import (
    PruningStep,
    step_table,
    summary_table,
    verdict_line,
    write_step,
)

LONG = 30.0  # seconds after which people begin to wonder


def announce_cut(trainer: pl.Trainer, step: PruningStep, report_dir: str | Path | None) -> None:
    """Print the table of a cut, warn of layers without a knee, and write the record."""
    _print(trainer, step_table(step))
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
    record_cut(trainer, step, report_dir)


def announce_wait(seconds: float, selection: SelectionConfig) -> None:
    """Say how long comparing the channels of all layers will take, where that is long."""
    if seconds > LONG:
        advice = "fewer" if selection.class_pairs else "only N pairs of classes, drawn at random"
        rank_zero_info(
            f"Comparing the channels of all layers will take about {seconds:.0f} s; "
            f"selection.class_pairs=N compares {advice}."
        )


def announce_verdict(trainer: pl.Trainer, step: PruningStep, report_dir: str | Path | None) -> None:
    """Print what the accuracy guard did, and write the record of the cut anew."""
    _print(trainer, verdict_line(step))
    if step.verdict is not None and step.verdict.outcome is Outcome.UNJUDGED:
        rank_zero_warn(
            f"The fit ended before the cut after epoch {step.epoch} could be judged; it stays. Train "
            "longer, or cut earlier."
        )
    record_cut(trainer, step, report_dir)


def announce_end(
    trainer: pl.Trainer, steps: Sequence[PruningStep], final: Complexity, accuracy: float | None
) -> None:
    """Print the summary of the cuts of a fit that were not undone."""
    standing = [step for step in steps if not step.undone]
    if standing:
        _print(trainer, summary_table(standing, final, accuracy))


def record_cut(trainer: pl.Trainer, step: PruningStep, report_dir: str | Path | None) -> None:
    """Write the record of a cut; a fit goes on without it where that fails."""
    root = trainer.log_dir or trainer.default_root_dir  # a collective: every process asks
    folder = Path(root, "acsp") if report_dir is None else Path(report_dir)
    if not trainer.is_global_zero:
        return
    try:
        write_step(step, folder)
    except OSError as error:
        rank_zero_warn(f"The record of the cut could not be written to {folder}: {error}.")


def _print(trainer: pl.Trainer, text: str) -> None:
    # Through the progress bar, which would overwrite what is written past it.
    trainer.lightning_module.print("\n" + text)
