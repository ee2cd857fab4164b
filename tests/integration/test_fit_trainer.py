"""Every other way to run a Trainer: dry runs, step limits, streams, workers, several fits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    Probe,
    callback,
    conv_net,
    hooks,
    noisy_images,
    ordered,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.optim import SGD
from torch.utils.data import DataLoader, IterableDataset


def test_fast_dev_run_does_nothing(fit: Fit, make_trainer: Fit) -> None:
    module, pruning = Classifier(), callback(5, 7)
    fit(module, [pruning], fast_dev_run=True)
    fit(module, [pruning], fast_dev_run=2)
    assert widths(module) == WIDTHS
    assert pruning.steps == []
    assert hooks(module) == 0


@pytest.mark.parametrize(
    ("options", "epoch"),
    [
        ({"num_sanity_val_steps": 0}, 0),
        ({"num_sanity_val_steps": -1}, 0),
        ({"check_val_every_n_epoch": 2}, 1),
        ({"max_epochs": -1, "max_steps": 12}, 0),
        ({"max_epochs": None, "max_steps": 12}, 0),
        ({"limit_val_batches": 0.7}, 0),
        ({"limit_train_batches": 2}, 0),
        ({"reload_dataloaders_every_n_epochs": 1}, 0),
        ({"check_val_every_n_epoch": None, "val_check_interval": 6}, 1),
        ({"overfit_batches": 2}, 0),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")
def test_trainer_options(fit: Fit, options: dict[str, Any], epoch: int) -> None:
    module, probe, pruning = Classifier(), Probe(), callback(epoch)
    fit(module, [pruning, probe], **options)
    assert probe.at("train_epoch_start", epoch)[0][0] == WIDTHS
    assert probe.at("train_epoch_start", epoch + 1)[0][0] == ALL_HALVED
    assert len(pruning.steps) == 1


def test_one_validation_batch(fit: Fit) -> None:
    pruning = callback()
    fit(Classifier(), [pruning], limit_val_batches=1)
    assert pruning.steps[0].samples == 6


def test_the_last_validation_of_an_epoch_wins(fit: Fit) -> None:
    module, probe, pruning = Classifier(), Probe(), callback(1)
    fit(module, [pruning, probe], val_check_interval=0.5)
    assert probe.names()["validation_end"] == 6
    assert pruning.steps[0].samples == 18
    assert all(found == WIDTHS for found, _ in probe.at("train_batch_end", 1))
    assert probe.at("train_epoch_start", 2)[0][0] == ALL_HALVED
    # Measured on the network as it was in the last validation, not in the first of the epoch.
    whole = Classifier()
    whole.load_state_dict(probe.states["validation_end", 1])
    images, labels = noisy_images(18, seed=2).tensors
    right = (whole.eval()(images).argmax(1) == labels).float().mean().item()
    assert pruning.steps[0].accuracy_before == pytest.approx(right)


class Stream(IterableDataset[Any]):
    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __iter__(self) -> Iterator[Any]:
        return iter(noisy_images(self.samples, self.seed))


@pytest.mark.parametrize("batchnorm_batches", [0, 2, 9])
def test_streams(fit: Fit, batchnorm_batches: int) -> None:
    module, pruning = Classifier(), callback(batchnorm_batches=batchnorm_batches)
    fit(
        module,
        [pruning],
        train=DataLoader(Stream(24, 1), batch_size=6),
        val=DataLoader(Stream(18, 2), batch_size=6),
    )
    assert pruning.steps[0].samples == 18
    assert widths(module) == ALL_HALVED
    assert module.steps == 12


@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_process(fit: Fit, persistent: bool) -> None:
    options = {"num_workers": 1, "persistent_workers": persistent}
    module, pruning = Classifier(), callback(batchnorm_batches=2)
    fit(module, [pruning], val=val_loader(**options), train=train_loader(**options))
    assert pruning.steps[0].samples == 18
    assert module.steps == 12


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_validate_and_test_alone(make_trainer: Fit, verb: str) -> None:
    module, pruning = Classifier(), callback(0)
    before = snapshot(module)
    getattr(make_trainer(pruning), verb)(module, val_loader(), verbose=False)
    assert same_state(snapshot(module), before)
    assert pruning.steps == []
    assert hooks(module) == 0


def test_validate_and_test_after_a_fit(fit: Fit, make_trainer: Fit, tmp_path: Path) -> None:
    class Saving(pl.Callback):
        file = tmp_path / "uncut.ckpt"

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(self.file)

    module, pruning, uncut = Classifier(), callback(0), Saving()
    trainer = fit(module, [pruning, uncut])
    for other in (trainer, make_trainer(pruning)):
        other.validate(module, val_loader(), verbose=False)
        other.test(module, val_loader(), verbose=False)
    assert len(pruning.steps) == 1
    (step,) = pruning.steps
    trainer.test(Classifier(), val_loader(), ckpt_path=uncut.file, verbose=False, weights_only=True)
    assert pruning.steps == [step], "a test of another file is no fit"
    # Nothing was made in inference mode: the network can be trained on.
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, train_loader(), val_loader())


def test_validating_before_a_fit_with_the_same_trainer(make_trainer: Fit) -> None:
    module, pruning = Classifier(), callback(0)
    trainer = make_trainer(pruning)
    trainer.validate(module, val_loader(), verbose=False)
    trainer.fit(module, train_loader(), val_loader())
    assert widths(module) == ALL_HALVED


def test_a_module_with_its_own_example_input(fit: Fit) -> None:
    module, pruning = Classifier(), callback()
    module.example_input_array = torch.zeros(4, 1, 6, 6)
    fit(module, [pruning])
    assert widths(module) == ALL_HALVED
    assert pruning.steps[0].before.flops == 4 * 19722


def test_a_datamodule(make_trainer: Fit) -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return train_loader()

        def val_dataloader(self) -> Any:
            return [val_loader()]

    module = Classifier()
    make_trainer(callback(batchnorm_batches=1)).fit(module, Data())
    assert widths(module) == ALL_HALVED


def test_two_callbacks_take_turns(fit: Fit) -> None:
    module = Classifier()
    first, second = callback(0, include=["net.conv1"]), callback(0, exclude=["net.conv1"])
    fit(module, [first, second])
    assert widths(module) == ALL_HALVED


def test_early_stopping_between_capture_and_cut(fit: Fit) -> None:
    module, pruning = Classifier(), callback(0)
    stop = pl.callbacks.EarlyStopping("val_loss", stopping_threshold=1e9)
    with pytest.warns(UserWarning, match=r"No cut was made after epoch 0.*EarlyStopping\?\)"):
        fit(module, [pruning, stop])
    assert widths(module) == WIDTHS


def test_layers_in_nested_containers(fit: Fit) -> None:
    module = Classifier(torch.nn.Sequential(Classifier().net))
    pruning = callback(include=["net.0.conv1"])
    fit(module, [pruning])
    assert list(pruning.steps[0].layers) == ["net.0.conv1"]


ORDERS = pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])


# -- memory format -----------------------------------------------------------------------------------
def test_channels_last_survives_a_fit(fit: Fit) -> None:
    module = Classifier()
    module.to(memory_format=torch.channels_last)
    trainer = fit(module, [callback()])
    assert widths(module) == ALL_HALVED
    weight = module.net.conv2.weight
    assert weight.stride() == torch.empty(3, 4, 3, 3, memory_format=torch.channels_last).stride()
    (optimizer,) = trainer.optimizers
    assert optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()


# -- tuners ------------------------------------------------------------------------------------------
class Tunable(Classifier):
    def __init__(self) -> None:
        super().__init__(conv_net())
        self.lr, self.batch_size = 0.05, 2

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader(batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return val_loader()


def find_rate(trainer: pl.Trainer, module: Tunable) -> None:
    Tuner(trainer).lr_find(module, num_training=40)


def find_batch_size(trainer: pl.Trainer, module: Tunable) -> None:
    Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=1)


@pytest.mark.parametrize("tune", [find_rate, find_batch_size])
def test_tuning_before_the_fit(make_trainer: Fit, tune: Any) -> None:
    module, pruning = Tunable(), callback()
    trainer = make_trainer(pruning)
    tune(trainer, module)
    assert (module.lr, module.batch_size) != (0.05, 2)
    assert widths(module) == WIDTHS
    assert pruning.steps == []
    trainer.fit(module)
    assert widths(module) == ALL_HALVED
    assert trainer.current_epoch == 3


@ORDERS
@pytest.mark.parametrize(
    "finder",
    [
        lambda: LearningRateFinder(num_training_steps=40),
        lambda: BatchSizeFinder(max_trials=2, steps_per_trial=1),
    ],
    ids=["rate", "batch size"],
)
def test_tuning_inside_the_fit(make_trainer: Fit, finder: Any, ours_first: bool) -> None:
    module, pruning = Tunable(), callback()
    trainer = make_trainer(*ordered(pruning, finder(), ours_first))
    trainer.fit(module)
    assert (module.lr, module.batch_size) != (0.05, 2)
    assert len(pruning.steps) == 1
    assert widths(module) == ALL_HALVED
    assert trainer.current_epoch == 3


def test_epochs_that_a_fit_has_behind_it_are_named_at_its_start(make_trainer: Fit) -> None:
    module, pruning = Classifier(), callback(0, 3)
    trainer = make_trainer(pruning, max_epochs=2)
    with pytest.raises(ValueError, match="epochs has 3"):
        trainer.fit(module, train_loader(), val_loader())
    pruning = callback(0)
    trainer = make_trainer(pruning, max_epochs=2)
    trainer.fit(module, train_loader(), val_loader())
    assert len(pruning.steps) == 1
    trainer.fit_loop.max_epochs = 4
    with pytest.warns(UserWarning, match="epochs has 0, but this fit begins with epoch 2") as caught:
        trainer.fit(module, train_loader(), val_loader())
    assert not any("No cut was made" in str(warning.message) for warning in caught)


def test_a_module_can_be_pickled_inside_a_fit(fit: Fit, tmp_path: Path) -> None:
    class Pickling(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            torch.save(pl_module, tmp_path / "module.pt")

    module = Classifier()
    fit(module, [callback(0), Pickling()])
    again = torch.load(tmp_path / "module.pt", weights_only=False)
    assert same_state(snapshot(again), snapshot(module))
    again.load_state_dict(module.state_dict())
