"""Averaged copies of the network that callbacks of the Trainer hold."""

from collections.abc import Iterator

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

from acsp_lightning.trainer.checks import callbacks_of


def averaged_copies(trainer: pl.Trainer) -> Iterator[nn.Module]:
    """The copies of the module whose weights the Trainer's callbacks average (EMA, SWA)."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            yield callback._average_model.module
        if isinstance(callback, StochasticWeightAveraging) and callback._average_model is not None:
            yield callback._average_model
