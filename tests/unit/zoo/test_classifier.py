import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn

from acsp_lightning.zoo import VGG, DigitsDataModule, ImageClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
]


def quiet_trainer(epochs: int) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_two_epochs_on_digits_are_far_above_chance() -> None:
    pl.seed_everything(0, verbose=False)
    module = ImageClassifier(VGG([[8], [16]], in_channels=1))
    data = DigitsDataModule()
    trainer = quiet_trainer(epochs=2)
    trainer.fit(module, datamodule=data)
    assert {"train_loss", "val_loss", "val_acc"} <= set(trainer.callback_metrics)
    trainer.test(module, datamodule=data, verbose=False)
    assert trainer.callback_metrics["test_acc"] > 0.5
    assert "test_loss" in trainer.callback_metrics


def test_logged_accuracy_is_the_share_of_right_predictions() -> None:
    pl.seed_everything(0, verbose=False)
    module = ImageClassifier(VGG([[4]], in_channels=1))
    # 100 does not divide 360: the mean of the batches' accuracies would be another number.
    data = DigitsDataModule(batch_size=100)
    trainer = quiet_trainer(epochs=1)
    trainer.test(module, datamodule=data, verbose=False)
    logged = trainer.callback_metrics["test_acc"]
    predictions = trainer.predict(module, datamodule=data)
    assert predictions is not None
    classes = torch.cat([torch.as_tensor(batch) for batch in predictions])
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert logged == pytest.approx((classes == labels).float().mean().item())


def test_the_default_optimizer_is_the_documented_one() -> None:
    optimizer = ImageClassifier(nn.Linear(2, 10)).configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)


def test_a_scheduler_is_built_from_the_optimizer() -> None:
    module = ImageClassifier(
        nn.Linear(2, 10),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3),
    )
    configured = module.configure_optimizers()
    assert isinstance(configured, tuple)
    [optimizer], [scheduler] = configured
    assert scheduler.optimizer is optimizer


def test_a_plateau_scheduler_keeps_its_monitor() -> None:
    module = ImageClassifier(
        nn.Linear(2, 10),
        lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val_loss"),
    )
    configured = module.configure_optimizers()
    assert isinstance(configured, dict)
    assert configured["lr_scheduler"]["monitor"] == "val_loss"


def test_a_network_with_another_number_of_outputs_is_refused() -> None:
    module = ImageClassifier(nn.Linear(2, 7), num_classes=10)
    with pytest.raises(ValueError, match=r"Linear gives outputs of shape \(4, 7\) .* \(4, 10\)"):
        module.training_step((torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), 0)


def test_data_with_another_number_of_classes_is_refused_before_training() -> None:
    trainer = quiet_trainer(epochs=1)
    module = ImageClassifier(VGG([[4]], num_classes=7, in_channels=1), num_classes=7)
    with pytest.raises(ValueError, match=r"DigitsDataModule has 10 classes, .*num_classes=7"):
        trainer.fit(module, datamodule=DigitsDataModule())
    assert trainer.global_step == 0
