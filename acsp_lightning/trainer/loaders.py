"""Batches of the Trainer's data loaders outside its loops, as the loops would hand them on."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from itertools import count, islice
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader


def validation_batches(trainer: pl.Trainer, max_batches: int | None = None) -> Iterator[Any]:
    """What the validation loop hands to ``validation_step``, on the module's device.

    Of several loaders that come one after the other, the batches of the first; of loaders that are
    combined (``CombinedLoader`` of another mode than "sequential"), the combined batches.

    Args:
        trainer: inside ``fit``, after ``on_fit_start``; or inside ``validate``.
        max_batches: at most this many, besides the Trainer's own limit.
    """
    loop = validation_loop(trainer)
    if loop._combined_loader is None:
        # The Trainer sets the loop up only when its first validation is due.
        with _in_stage(trainer, RunningStage.VALIDATING):
            loop.setup_data()
    loader = loop._combined_loader
    if loader is None:
        return iter(())
    if is_combined(loader):
        batches = _drawn(loader.iterables, loader._mode, loop.max_batches)
    else:
        batches = _drawn(loader.flattened[0], loader._mode, loop.max_batches[:1])
    return _prepared(trainer, loader, islice(batches, max_batches), RunningStage.VALIDATING)


def training_batches(trainer: pl.Trainer) -> Iterator[Any]:
    """What the training loop hands to ``training_step`` in an epoch, on the module's device."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None, "training has begun"
    batches = _drawn(loader.iterables, loader._mode, loader.limits)
    return _prepared(trainer, loader, batches, RunningStage.TRAINING)


def validation_loop(trainer: pl.Trainer) -> Any:
    """The loop that validates: that of the fit, or of a validation alone."""
    alone = trainer.state.fn is TrainerFn.VALIDATING
    return trainer.validate_loop if alone else trainer.fit_loop.epoch_loop.val_loop


def is_combined(loader: CombinedLoader | None) -> bool:
    """Whether batches are made of those of several loaders."""
    return loader is not None and loader._mode != "sequential"


def _drawn(iterables: Any, mode: Any, limits: list[int | float] | None) -> Iterator[Any]:
    """Batches of loaders by an iterator of our own: the Trainer's may be under way."""
    loader = CombinedLoader(tree_map(_with_own_workers, iterables), mode)
    loader.limits = limits
    iter(loader)  # once only, since it starts the workers
    length = sized_len(loader)  # beyond its limits a combined loader goes on
    with suppress(StopIteration):
        for _ in count() if length is None else range(length):
            yield next(loader)[0]


def _with_own_workers(loader: Any) -> Any:
    """The same loader; if its workers persist, with an iterator that is not that of the Trainer."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader
    own = copy(loader)
    own._iterator = None
    return own


def _prepared(
    trainer: pl.Trainer, loader: CombinedLoader, batches: Iterator[Any], stage: RunningStage
) -> Iterator[Any]:
    with _order_restored(loader):
        for batch in batches:
            with _in_stage(trainer, stage):
                batch = trainer.precision_plugin.convert_input(batch)
                batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            yield batch


@contextmanager
def _order_restored(loader: CombinedLoader) -> Iterator[None]:
    """The batches to come, and their order, are not to depend on these extra passes."""
    generators = [getattr(part, "generator", None) for part in loader.flattened]
    drawn = [(generator, generator.get_state()) for generator in generators if generator is not None]
    places = loader._state_dicts()  # of loaders that go on where they were
    try:
        yield
    finally:
        loader._load_state_dicts(places)
        for generator, state in drawn:
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
