"""Batches of the Trainer's data loaders outside its loops, as the loops would hand them on."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader


def validation_batches(trainer: pl.Trainer, max_batches: int | None = None) -> Iterator[Any]:
    """Batches of the first validation loader, on the module's device.

    Args:
        trainer: inside ``fit``, after ``on_fit_start``; or inside ``validate``.
        max_batches: at most this many, besides the Trainer's own limit.
    """
    alone = trainer.state.fn is TrainerFn.VALIDATING
    loop = trainer.validate_loop if alone else trainer.fit_loop.epoch_loop.val_loop
    if trainer.val_dataloaders is None:
        # The Trainer sets the loop up only when its first validation is due.
        with _in_stage(trainer, RunningStage.VALIDATING):
            loop.setup_data()
    limits = [loop.max_batches[0], *([] if max_batches is None else [max_batches])]
    return _prepared(trainer, trainer.val_dataloaders, min(limits), RunningStage.VALIDATING)


def training_batches(trainer: pl.Trainer) -> Iterator[Any]:
    """Batches of the first training loader of a fit, on the module's device."""
    loaders, limit = trainer.train_dataloader, trainer.num_training_batches
    return _prepared(trainer, loaders, limit, RunningStage.TRAINING)


def _prepared(trainer: pl.Trainer, loaders: Any, limit: float, stage: RunningStage) -> Iterator[Any]:
    loader = CombinedLoader(loaders, "sequential").flattened[0]
    with _generator_restored(loader):
        for batch in islice(loader, None if limit == float("inf") else int(limit)):
            with _in_stage(trainer, stage):
                batch = trainer.precision_plugin.convert_input(batch)
                batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            yield batch


@contextmanager
def _generator_restored(loader: Any) -> Iterator[None]:
    """The order of the batches to come is not to depend on these extra passes."""
    generator = getattr(loader, "generator", None)
    state = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        if generator is not None:
            generator.set_state(state)


@contextmanager
def _in_stage(trainer: pl.Trainer, stage: RunningStage) -> Iterator[None]:
    """Transfer hooks of users ask ``trainer.training`` whether to augment a batch."""
    before = trainer.state.stage
    trainer.state.stage = stage
    try:
        yield
    finally:
        trainer.state.stage = before
