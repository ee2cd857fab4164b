"""What the report of a fit says, against what the fit did."""

import json
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import (
    CLASSES,
    Classifier,
    Fit,
    Scripted,
    callback,
    conv_net,
    noisy_images,
    only_whole,
    train_loader,
    val_loader,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from acsp_lightning import Guard, PruningStep, SelectionConfig, preview
from acsp_lightning.report import read_step

NAMES = ("ant", "bee", "<cat>")


class Named(pl.LightningDataModule):
    """Data whose data set, below a Subset, knows the names of its classes."""

    def train_dataloader(self) -> Any:
        return train_loader()

    def val_dataloader(self) -> Any:
        dataset = noisy_images(18, seed=2)
        dataset.classes = list(NAMES)  # type: ignore[attr-defined]
        return DataLoader(Subset(dataset, range(18)), batch_size=6)


class Reshaped(nn.Module):
    """The first layer has to have the channels that the code counts on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        folded = self.stem(images).view(len(images), 2, 4, *images.shape[2:])
        out: Tensor = self.body(folded.relu().flatten(1, 2))
        return out


def record_of(folder: Path) -> PruningStep:
    return read_step(folder / "report.json")


def classified(module: nn.Module) -> list[int]:
    """Samples of each class that a network gets right, counted one by one."""
    right = [0] * CLASSES
    module.eval()
    with torch.no_grad():
        for images, labels in val_loader():
            for image, label in zip(images, labels.tolist(), strict=True):
                right[label] += int(module(image[None]).argmax()) == label
    return right


@pytest.mark.filterwarnings("ignore:Some layers are left whole")
def test_a_report_knows_the_end_the_classes_and_what_stayed_whole(
    make_trainer: Fit, tmp_path: Path
) -> None:
    pl.seed_everything(0, verbose=False)
    module = Classifier(Reshaped())
    pruning = callback(0, report_plots=True, report_dir=tmp_path / "acsp")
    before: list[list[int]] = []

    class Count(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                before.append(classified(pl_module))

    make_trainer(Count(), pruning, max_epochs=3).fit(module, datamodule=Named())
    folder = tmp_path / "acsp" / "cut_after_epoch_0"
    found = record_of(folder)
    assert tuple(found.class_names) == NAMES
    assert list(found.left_whole) == ["net.stem"]
    assert found.classes_before is not None
    assert [found.classes_before.right.tolist()] == before
    assert found.classes_before.accuracy == found.accuracy_before
    assert found.classes_after is not None
    assert found.classes_after.accuracy == found.accuracy_after
    assert found.end is not None
    assert found.end.classes is not None
    assert found.end.classes.right.tolist() == classified(module)
    assert found.end.complexity == found.after, "no cut came after this one"

    page = (folder / "report.html").read_text()
    assert "&lt;cat&gt;" in page
    assert "net.stem" in page.partition('id="whole"')[2]
    assert "at the end" in page
    assert page.count("data:image/png") == len(list(folder.glob("*.png")))


def test_only_the_last_cut_has_the_end(fit: Fit, tmp_path: Path) -> None:
    module = Classifier()
    options = {"layers_per_epoch": 1, "report_dir": tmp_path / "acsp"}
    fit(module, [callback(0, 1, **options)], max_epochs=4)
    first, last = (record_of(tmp_path / "acsp" / f"cut_after_epoch_{epoch}") for epoch in (0, 1))
    assert first.end is None
    assert last.end is not None
    assert last.end.classes is not None
    assert last.end.classes.right.tolist() == classified(module)


def test_a_cut_that_was_rolled_back_has_no_end(fit: Fit, tmp_path: Path) -> None:
    guard = Guard(0.1, monitor="quality")
    fit(Scripted(only_whole), [callback(0, guard=guard, report_dir=tmp_path / "acsp")], max_epochs=4)
    records = list(tmp_path.rglob("report.json"))
    assert len(records) == 2
    assert all(json.loads(path.read_text())["end"] is None for path in records)


@pytest.mark.filterwarnings("ignore:.*which is chance among")
def test_a_preview_names_the_same(tmp_path: Path) -> None:
    found = preview(Classifier(Reshaped()), Named().val_dataloader(), SelectionConfig(keep=0.5))
    assert tuple(found.class_names) == NAMES
    assert list(found.left_whole) == ["net.stem"]
    assert found.classes_before is not None
    assert int(found.classes_before.seen.sum()) == found.samples == 18
    assert found.end is None


def test_the_record_of_a_long_fit_is_small_enough_to_print(fit: Fit) -> None:
    pruning = callback(0, 1)
    fit(Classifier(conv_net()), [pruning], max_epochs=3)
    text = repr(pruning.steps)
    assert len(re.findall("<PruningStep: Cut after epoch", text)) == 2
    assert len(text.splitlines()) <= 12
