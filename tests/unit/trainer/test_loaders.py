"""Extra passes over the loaders of a fit, beside the loaders themselves."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Classifier, Fit, noisy_images, same_state, snapshot, train_loader, val_loader
from torch.utils.data import DataLoader

from acsp_lightning.trainer.loaders import training_batches, validation_batches


class Looking(pl.Callback):
    """Does ``look(trainer)`` at the start of every epoch of training."""

    def __init__(self, look: Callable[[pl.Trainer], Any]) -> None:
        self.look = look
        self.seen: list[Any] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(self.look(trainer))


def images(batches: Any) -> torch.Tensor:
    return torch.cat([batch[0] for batch in batches])


@pytest.mark.parametrize(
    ("most", "limit", "count"), [(None, 1.0, 3), (2, 1.0, 2), (None, 2, 2), (3, 1, 1)]
)
def test_validation_batches_are_those_of_the_loader(
    fit: Fit, most: int | None, limit: float, count: int
) -> None:
    looking = Looking(lambda trainer: list(validation_batches(trainer, most)))
    fit(Classifier(), [looking], limit_val_batches=limit)
    expected = list(val_loader())[:count]
    for found in looking.seen:
        assert len(found) == count
        assert torch.equal(images(found), images(expected))


def test_training_batches_are_those_of_an_epoch(fit: Fit) -> None:
    looking = Looking(lambda trainer: images(training_batches(trainer)))
    fit(Classifier(), [looking])
    expected = noisy_images(24, seed=1).tensors[0]
    for found in looking.seen:
        order = [int((expected - image).abs().sum((1, 2, 3)).argmin()) for image in found]
        assert sorted(order) == list(range(24))
        assert torch.equal(found, expected[order])


def test_limits_of_training_hold(fit: Fit) -> None:
    looking = Looking(lambda trainer: len(list(training_batches(trainer))))
    fit(Classifier(), [looking], limit_train_batches=3)
    assert looking.seen == [3, 3, 3]


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("whole", [True, False])
def test_the_order_of_batches_to_come_does_not_change(
    fit: Fit, own_generator: bool, whole: bool
) -> None:
    """Where Lightning seeds, and where the loader has a generator; also of a pass that is left early."""

    def loader() -> DataLoader[Any]:
        return train_loader(generator=torch.Generator().manual_seed(7) if own_generator else None)

    def look(trainer: pl.Trainer) -> None:
        with torch.random.fork_rng():
            for batches in (training_batches(trainer), validation_batches(trainer)):
                next(batches)
                if whole:
                    list(batches)
                else:
                    batches.close()

    plain, looked_at = Classifier(), Classifier()
    fit(plain, train=loader())
    fit(looked_at, [Looking(look)], train=loader())
    assert looked_at.losses == plain.losses
    assert same_state(snapshot(looked_at), snapshot(plain))


def test_hooks_of_the_module_see_the_stage_that_the_batch_is_of(fit: Fit) -> None:
    class Asked(Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return (*batch, self.trainer.training)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[:2], batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch[:2], batch_idx)

    looking = Looking(
        lambda trainer: [
            [batch[2] for batch in batches]
            for batches in (validation_batches(trainer), training_batches(trainer))
        ]
    )
    fit(Asked(), [looking], max_epochs=1)
    assert looking.seen == [[[False] * 3, [True] * 4]]
