import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fits
from helpers.fits import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    Saver,
    callback,
    job,
    same_state,
    snapshot,
    widths,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from acsp_lightning import PrunedCheckpointMixin, load_pruned


class Predictor(PrunedCheckpointMixin, Classifier):
    """A module that also predicts, and loads its own pruned files."""

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])


@pytest.fixture
def pruned(fit: Fit, tmp_path: Path) -> Classifier:
    """A pruned module; uncut.ckpt and cut.ckpt are the network before and after."""
    module = Classifier()
    saver = Saver(tmp_path)
    fit(module, [callback(), saver])
    (tmp_path / "epoch0-end.ckpt").rename(tmp_path / "uncut.ckpt")
    (tmp_path / "epoch2-end.ckpt").rename(tmp_path / "cut.ckpt")
    return module


@pytest.mark.parametrize("task", ["validate", "test", "predict"])
def test_evaluation_of_a_pruned_file(
    task: str, pruned: Classifier, make_trainer: Fit, tmp_path: Path
) -> None:
    module = Classifier()
    module.predict_step = lambda batch, batch_idx: module(batch[0])
    trainer = make_trainer(callback())
    getattr(trainer, task)(module, fits.val_loader(), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert widths(module) == ALL_HALVED
    assert same_state(snapshot(module), snapshot(pruned))
    assert not module._load_state_dict_pre_hooks


def test_the_best_network_may_be_larger_than_the_last(fit: Fit, tmp_path: Path) -> None:
    class Worsening(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("epoch", float(self.current_epoch))

    module = Worsening()
    best = ModelCheckpoint(tmp_path, monitor="epoch")
    options = {"enable_checkpointing": True}
    trainer = fit(module, [callback(reset_monitors=False), best], **options)
    assert widths(module) == ALL_HALVED
    trainer.test(module, fits.val_loader(), ckpt_path="best", weights_only=True)
    assert widths(module) == WIDTHS
    saved = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert same_state(snapshot(module), saved)


def test_load_from_checkpoint(pruned: Classifier, tmp_path: Path) -> None:
    module = Predictor.load_from_checkpoint(tmp_path / "cut.ckpt", weights_only=True)
    assert widths(module) == ALL_HALVED
    assert same_state(snapshot(module), snapshot(pruned))


def write_weights_only(module: Classifier, path: Path, make_trainer: Fit) -> None:
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=True)


def write_state_dict(module: Classifier, path: Path, make_trainer: Fit) -> None:
    torch.save(module.state_dict(), path)


def write_safetensors(module: Classifier, path: Path, make_trainer: Fit) -> None:
    from safetensors.torch import save_file

    save_file(module.state_dict(), path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_weights_only, "weights.ckpt"),
        (write_state_dict, "weights.pt"),
        (write_safetensors, "weights.safetensors"),
    ],
)
def test_files_that_load_pruned_reads(
    write: Any, name: str, pruned: Classifier, make_trainer: Fit, tmp_path: Path
) -> None:
    write(pruned, tmp_path / name, make_trainer)
    module = load_pruned(Classifier(), tmp_path / name)
    assert widths(module) == ALL_HALVED
    assert same_state(snapshot(module), snapshot(pruned))


def test_safetensors_is_asked_for_only_when_needed(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        load_pruned(Classifier(), tmp_path / "weights.safetensors")


def test_another_architecture_names_the_first_layer(make_trainer: Fit, tmp_path: Path) -> None:
    net = fits.conv_net()
    net.fc1.weight = nn.Parameter(torch.zeros(10, 54, 1))
    net.conv2 = nn.Conv2d(8, 6, 5, padding=2, bias=False)
    net.bn1.register_buffer("running_mean", torch.zeros(8, 2))
    job(make_trainer, callback(), Saver(tmp_path), max_epochs=2)
    file = tmp_path / "epoch1-end.ckpt"
    module = Classifier(net)
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"Layer 'net\.bn1' does not fit.*\(4,\).*\(8, 2\)"):
        load_pruned(module, file)
    with pytest.raises(ValueError, match=r"Layer 'net\.bn1' does not fit"):
        job(make_trainer, callback(), module=module, ckpt_path=file)
    assert same_state(snapshot(module), before)


def test_the_memory_format_survives(pruned: Classifier, tmp_path: Path) -> None:
    module = Classifier().to(memory_format=torch.channels_last)
    load_pruned(module, tmp_path / "cut.ckpt")
    assert module.net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert not module.net.conv2.weight.is_contiguous()
