"""Cuts in the Trainer's loggers: scalars for all, plots for those that take plots."""

from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from PIL import Image

from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.report import PruningStep, png
from acsp_lightning.settings import PruningSettings

PREFIX = "acsp/"


def log_cut(trainer: pl.Trainer, step: PruningStep, figures: Mapping[str, Figure]) -> None:
    """Log how large and how good the network is straight after a cut, and some plots of it.

    A logger that fails is left out, with a warning: no fit ends because of it.
    """
    widths = {name: after for name, (_, after) in step.layers.items()}
    _log(trainer, _scalars(step.after, widths, step.accuracy_after), figures)


def report_dir(trainer: pl.Trainer, settings: PruningSettings) -> Path:
    """The folder of all reports: that of the settings, or else "acsp" in the first logger's.

    Unlike ``trainer.log_dir`` no matter of all processes.
    """
    if settings.report_dir is not None:
        return Path(settings.report_dir)
    logger = trainer.logger
    found = None if logger is None else logger.log_dir or logger.save_dir
    return Path(found or trainer.default_root_dir, "acsp")


def takes_plots(trainer: pl.Trainer) -> bool:
    """Whether a logger of the Trainer takes plots."""
    return any(isinstance(logger, tuple(FIGURES)) for logger in trainer.loggers)


def log_rolled_back(trainer: pl.Trainer, step: PruningStep) -> None:
    """Log that the network is again what it was before a cut."""
    widths = {name: before for name, (before, _) in step.layers.items()}
    _log(trainer, _scalars(step.before, widths, step.accuracy_before), {})


def _scalars(
    complexity: Complexity, widths: Mapping[str, int], accuracy: float | None
) -> dict[str, float]:
    found: dict[str, float] = {"flops": complexity.flops, "parameters": complexity.parameters}
    if accuracy is not None:
        found["accuracy_straight_after"] = accuracy
    found.update({f"channels/{name}": width for name, width in widths.items()})
    return {PREFIX + name: float(value) for name, value in found.items()}


def _log(trainer: pl.Trainer, scalars: dict[str, float], figures: Mapping[str, Figure]) -> None:
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        try:
            logger.log_metrics(scalars, step=trainer.global_step)
            _log_figures(logger, figures.items(), trainer.global_step)
        except Exception as error:
            rank_zero_warn(
                f"{type(logger).__name__} did not take the figures of the cut "
                f"({type(error).__name__}: {error}). Training goes on without them."
            )


def _log_figures(logger: Logger, figures: Iterable[tuple[str, Figure]], step: int) -> None:
    kind = next((kind for kind in FIGURES if isinstance(logger, kind)), None)
    if kind is not None:
        for name, figure in figures:
            FIGURES[kind](logger, f"{PREFIX}plots/{name}", figure, step)


def _to_tensorboard(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.experiment.add_figure(name, figure, step, close=False)


def _to_wandb(logger: Any, name: str, figure: Figure, step: int) -> None:
    with Image.open(BytesIO(png(figure))) as plot:
        logger.log_image(name, [plot], step)


FIGURES: Mapping[type[Logger], Callable[[Any, str, Figure, int], None]] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
}
