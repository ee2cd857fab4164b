"""The command line, called as a function."""

import importlib
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.cli import LightningCLI

from acsp_lightning.cli import main

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = RECIPES / "digits_vgg.yaml"
SHORT = [
    "--trainer.callbacks=null",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.log_every_n_steps=1",
]


def run(*words: object) -> None:
    main([*map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 2
    return capsys.readouterr().err


# A module of a user's, with a network and its data.
OWN = '''
import torch
from lightning.pytorch import LightningModule
from torch import nn

from acsp_lightning.zoo import DigitsDataModule


class Data(DigitsDataModule):
    pass


class Small(LightningModule):
    def __init__(self, hidden: int, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, hidden, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(hidden, 10),
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.rate)


class SmallWithData(Small):
    def val_dataloader(self):
        return Data(batch_size=64).val_dataloader()


class SmallWithExample(Small):
    example_input_array = torch.zeros(2, 1, 8, 8)


class SmallInSetup(Small):
    """Builds its network in every stage, again and again."""

    stages = ("fit", "validate", "test", "predict")

    def __init__(self, hidden: int, rate: float = 0.1) -> None:
        super().__init__(hidden, rate)
        del self.net

    def setup(self, stage):
        if stage in self.stages:
            self.net = Small(self.hparams.hidden).net


class SmallInSetupWithExample(SmallInSetup):
    example_input_array = torch.zeros(2, 1, 8, 8)


class SmallInFit(SmallInSetup):
    stages = ("fit",)
'''
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 2,
    "log_every_n_steps": 1,
}


def from_python(own: str, folder: Path) -> Path:
    """A checkpoint of a fit without any command line."""
    module = importlib.import_module(own)
    trainer = pl.Trainer(logger=False, default_root_dir=folder, **QUIET)
    trainer.fit(module.Small(6), module.Data(batch_size=64))
    (found,) = folder.rglob("*.ckpt")
    return found


def from_own_command_line(own: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, with its config.yaml, of a command line with fixed classes."""
    module = importlib.import_module(own)
    monkeypatch.setattr(sys, "argv", ["own.py"])
    LightningCLI(
        module.Small,
        module.Data,
        seed_everything_default=0,
        trainer_defaults={**QUIET, "default_root_dir": str(folder)},
        args=["fit", "--model.hidden=6", "--data.batch_size=64"],
    )
    (found,) = folder.rglob("*.ckpt")
    return found
