import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import fits
from helpers.fits import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    ResumableLoader,
    Scripted,
    callback,
    same_state,
    snapshot,
    widths,
)
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
)
from torch import Tensor, nn

from acsp_lightning import (
    ACSPPruningCallback,
    PrunedCheckpointMixin,
    load_pruned,
)
from acsp_lightning.serialization import encode


class Saver(pl.Callback):
    """Writes a checkpoint at every moment of a fit; stands after the pruning callback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: pl.Trainer, moment: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}-{moment}.ckpt")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, "start")

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, idx: int) -> None:
        self.save(trainer, f"batch{idx}")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, f"step{trainer.global_step}-validation")

    def on_validation_batch_end(
        self, trainer: Any, module: Any, out: Any, batch: Any, idx: int, loader: int = 0
    ) -> None:
        self.save(trainer, f"step{trainer.global_step}-validation{idx}")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, f"step{trainer.global_step}-validated")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, "end")


def sgd(module: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)}


def job(
    make_trainer: Fit,
    pruning: ACSPPruningCallback,
    *others: pl.Callback,
    module: Classifier | None = None,
    ckpt_path: Path | str | None = None,
    configure: Any = sgd,
    quality: Callable[[int], float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A fit of a fresh module; all that it leaves behind, as plain data."""
    trainer = make_trainer(pruning, *others, **options)
    if module is None:
        module = Scripted(quality, configure=configure) if quality else Classifier(configure=configure)
    trainer.fit(
        module,
        ResumableLoader(fits.noisy_images(24, seed=1), batch_size=6),
        fits.val_loader(),
        ckpt_path=ckpt_path,
        weights_only=True,
    )
    averaged = [c._average_model for c in others if isinstance(c, EMAWeightAveraging)]
    return encode(
        {
            "widths": widths(trainer.lightning_module),
            "weights": snapshot(trainer.lightning_module),
            "averaged": [snapshot(copy) for copy in averaged if copy is not None],
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
            "steps": pruning.steps,
            "progress": (trainer.current_epoch, trainer.global_step),
        }
    )


# -- evaluation and loading ----------------------------------------------------------------------------
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
