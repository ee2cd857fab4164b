"""A network that the module holds whole and runs in part, under other names: transfer learning."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import (
    CLASSES,
    Classifier,
    Fit,
    Saver,
    callback,
    differences,
    job,
    only_whole,
    same_state,
    snapshot,
)
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from acsp_lightning import Guard, PrunedCheckpointMixin, load_pruned

pytestmark = pytest.mark.filterwarnings(r"ignore:.*'net\.fc2'")  # forward does not call it

HALVED = {"conv1": 4, "conv2": 3, "fc1": 5, "fc2": CLASSES}


class FineTuned(PrunedCheckpointMixin, Classifier):
    """Takes all of a network but its last layer, and has an average of this part."""

    def __init__(self, averages: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*list(self.net.children())[:-1])
        self.head = nn.Linear(10, CLASSES)
        self.average = [copy.deepcopy(self.encoder)] if averages else []
        self.held = {name: value.clone() for name, value in self.state_dict().items() if averages}

    def forward(self, images: Any) -> Tensor:
        return self.head(self.encoder(images))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("quality", only_whole(len(self.net.conv1.weight)))


def widths_of(module: nn.Module) -> dict[str, int]:
    return {name: len(layer.weight) for name, layer in module.net.named_children() if name in HALVED}


def test_it_is_cut_trained_saved_and_loaded(fit: Fit, tmp_path: Path) -> None:
    module, average, pruning = FineTuned(), EMAWeightAveraging(), callback(0)
    fit(module, [average, pruning, Saver(tmp_path)])
    assert widths_of(module) == HALVED
    assert module.encoder[0] is module.net.conv1
    assert module.head.in_features == 5
    assert module.steps == 12
    (step,) = pruning.steps
    assert step.left_whole == {}
    assert set(step.selections) == {"net.conv1", "net.conv2", "net.fc1"}
    assert step.after.flops == sum(step.after.by_layer.values())
    assert {name for name, flops in step.after.by_layer.items() if flops} <= {
        *(f"net.{name}" for name, _ in module.net.named_children()),
        "head",
    }
    loaded = load_pruned(FineTuned(), tmp_path / "epoch2-end.ckpt")
    assert widths_of(loaded) == HALVED
    assert loaded.encoder[3] is loaded.net.conv2
    again = FineTuned.load_from_checkpoint(tmp_path / "epoch2-end.ckpt", weights_only=True)
    for found in (loaded, again):
        assert same_state(snapshot(found), snapshot(average._average_model.module))


def test_an_interrupted_fit_ends_as_one_that_was_not(make_trainer: Fit, tmp_path: Path) -> None:
    whole = job(make_trainer, callback(0), Saver(tmp_path), module=FineTuned())
    for moment in ("epoch0-end", "epoch1-end"):
        file = tmp_path / f"{moment}.ckpt"
        again = job(make_trainer, callback(0), module=FineTuned(), ckpt_path=file)
        assert differences(again, whole) == []


def test_what_holds_a_part_or_a_state_dict_is_cut_along(fit: Fit) -> None:
    module = FineTuned(averages=True)
    fit(module, [callback(0)])
    (average,) = module.average
    for name, value in module.encoder.state_dict().items():
        assert average.state_dict()[name].shape == value.shape, name
    for name, value in module.state_dict().items():
        assert module.held[name].shape == value.shape, name


def test_a_cut_is_rolled_back(fit: Fit) -> None:
    module, pruning = FineTuned(), callback(0, guard=Guard(max_drop=0.1, monitor="quality"))
    fit(module, [pruning], max_epochs=4)
    assert pruning.steps[0].rolled_back
    assert widths_of(module) == {"conv1": 8, "conv2": 6, "fc1": 10, "fc2": CLASSES}
    assert module.head.in_features == 10
    assert torch.isfinite(module(torch.rand(2, 1, 6, 6))).all()


def test_a_frozen_teacher_of_a_part_stays_whole(fit: Fit) -> None:
    module = FineTuned()
    module.teacher = [copy.deepcopy(module.encoder).requires_grad_(False)]
    before = snapshot(module.teacher[0])
    with pytest.warns(UserWarning, match=r"teacher.* is a frozen Sequential with the weights"):
        fit(module, [callback(0)])
    assert same_state(snapshot(module.teacher[0]), before)
    assert widths_of(module) == HALVED


def test_an_average_that_begins_after_a_cut_is_rolled_back_too(fit: Fit) -> None:
    class Late(FineTuned):
        def on_train_epoch_end(self) -> None:
            if self.trainer.current_epoch == 1:
                self.average = [copy.deepcopy(self.encoder)]

    module, pruning = Late(), callback(0, guard=Guard(max_drop=0.1, monitor="quality", patience=2))
    fit(module, [pruning], max_epochs=6)
    assert pruning.steps[0].rolled_back
    (average,) = module.average
    assert {name: value.shape for name, value in average.state_dict().items()} == {
        name: value.shape for name, value in module.encoder.state_dict().items()
    }
