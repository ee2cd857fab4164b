"""Batches of the Trainer's data loaders outside its loops, as the loops would hand them on."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.combined_loader import CombinedLoader


def validation_batches(trainer: pl.Trainer, max_batches: int | None = None) -> Iterator[Any]:
    """Batches of the first validation loader of a fit, on the module's device.

    Args:
        trainer: inside ``fit``, after ``on_fit_start``.
        max_batches: at most this many, besides the Trainer's own limit.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    if trainer.val_dataloaders is None:
        # The Trainer sets the loop up only when its first validation is due.
        trainer.validating = True
        loop.setup_data()
        trainer.training = True
    limits = [loop.max_batches[0], *([] if max_batches is None else [max_batches])]
    return _prepared(trainer, trainer.val_dataloaders, min(limits))


def training_batches(trainer: pl.Trainer) -> Iterator[Any]:
    """Batches of the first training loader of a fit, on the module's device."""
    return _prepared(trainer, trainer.train_dataloader, trainer.num_training_batches)


def _prepared(trainer: pl.Trainer, loaders: Any, limit: float) -> Iterator[Any]:
    loader = CombinedLoader(loaders, "sequential").flattened[0]
    module = trainer.lightning_module
    for batch in islice(loader, None if limit == float("inf") else int(limit)):
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
