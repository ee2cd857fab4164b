"""Monitors that judge by the best value so far, over a cut that makes it worse."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Classifier, Fit, callback, only_whole, ordered
from helpers.fits import Scripted as ByWidth
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from acsp_lightning import Guard


class Scripted(Classifier):
    """Its validation loss is read off a list, one value per epoch."""

    def __init__(self, script: list[float], configure: Any = None) -> None:
        super().__init__(configure=configure)
        self.script = script

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])
        self.log("val_loss", self.script[self.current_epoch])


# Good before the cut, bad after it, and then better.
SCRIPT = [0.1, 5.0, 4.0, 3.0]


@pytest.mark.parametrize(("reset", "epochs"), [(True, 4), (False, 2)])
def test_early_stopping_starts_anew(fit: Fit, reset: bool, epochs: int) -> None:
    stop = EarlyStopping("val_loss", patience=1)
    trainer = fit(Scripted(SCRIPT), [stop, callback(reset_monitors=reset)], max_epochs=4)
    assert trainer.current_epoch == epochs
    assert stop.best_score == (3.0 if reset else pytest.approx(0.1))


def test_early_stopping_on_a_value_that_grows(fit: Fit) -> None:
    stop = EarlyStopping("val_loss", mode="max", patience=1)
    trainer = fit(Scripted([9.0, 1.0, 2.0, 3.0]), [stop, callback()], max_epochs=4)
    assert trainer.current_epoch == 4
    assert stop.best_score == 3.0


@pytest.mark.parametrize("threshold", [None, 8.0])
@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_early_stopping_between_validations_is_not_stopped(
    fit: Fit, tmp_path: Path, threshold: float | None
) -> None:
    """It looks after every epoch, the cut comes after one validation and long before the next."""
    stop = EarlyStopping(
        "val_loss",
        patience=2,
        strict=False,
        check_on_train_epoch_end=True,
        divergence_threshold=threshold,
    )
    save = ModelCheckpoint(tmp_path, monitor="val_loss", save_on_train_epoch_end=True, save_top_k=-1)
    trainer = fit(
        Scripted([0.0, 0.1, 0.0, 5.0]),
        [stop, callback(1), save],
        max_epochs=4,
        check_val_every_n_epoch=2,
        enable_checkpointing=True,
    )
    assert trainer.current_epoch == 4
    assert stop.best_score == 5.0


@pytest.mark.parametrize(("reset", "rates"), [(True, [1, 1, 1, 1]), (False, [1, 1, 0.5, 0.25])])
def test_plateaus_start_anew(fit: Fit, reset: bool, rates: list[float]) -> None:
    def plateau(module: nn.Module) -> Any:
        optimizer = SGD(module.parameters(), lr=1.0)
        scheduler = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    found = []

    class Rates(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            found.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = Scripted(SCRIPT, plateau)
    fit(module, [callback(reset_monitors=reset), Rates()], max_epochs=4, gradient_clip_val=0.01)
    assert found == rates


@pytest.mark.parametrize(("reset", "best"), [(True, 3), (False, 0)])
def test_the_best_checkpoint_is_of_the_cut_network(
    fit: Fit, tmp_path: Path, reset: bool, best: int
) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="val_loss")
    module = Scripted(SCRIPT)
    fit(module, [callback(reset_monitors=reset), save], max_epochs=4, enable_checkpointing=True)
    assert Path(save.best_model_path).name == f"epoch={best}.ckpt"
    assert save.best_model_score == pytest.approx(SCRIPT[best])
    assert (tmp_path / "epoch=0.ckpt").exists(), "the best of the uncut network stays"


class Filed(ModelCheckpoint):
    """Notes the score under which every file is saved, and the width of what is in it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.filed: list[tuple[int, int, float]] = []

    def _update_best_and_save(self, current: Tensor, trainer: Any, candidates: Any) -> None:
        super()._update_best_and_save(current, trainer, candidates)
        width = len(trainer.lightning_module.net.conv1.weight)
        self.filed.append((trainer.global_step, width, self.current_score.item()))


@pytest.mark.parametrize("reset", [True, False])
def test_no_step_of_the_cut_network_is_filed_under_the_metric_of_the_uncut_one(
    fit: Fit, tmp_path: Path, reset: bool
) -> None:
    save = Filed(tmp_path, monitor="val_loss", every_n_train_steps=1, save_top_k=-1)
    fit(
        Scripted([0.25, 5.0, 4.0]),
        [callback(reset_monitors=reset), save],
        enable_checkpointing=True,
    )
    scores = {step: score for step, width, score in save.filed if width == 4}
    unknown = torch.inf if reset else 0.25
    assert scores == {
        **dict.fromkeys((5, 6, 7, 8), unknown),
        **dict.fromkeys((9, 10, 11, 12), 5.0),
    }
    assert save.best_model_score == (5.0 if reset else 0.25)
    assert len(save.best_k_models) == 8


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
@pytest.mark.parametrize("reset", [True, False])
def test_after_a_rollback_monitors_see_what_was_logged_of_the_network_that_is_back(
    fit: Fit, tmp_path: Path, reset: bool, ours_first: bool
) -> None:
    """Not NaN, for which EarlyStopping ends a fit, nor the value of the network that is gone."""

    class Stop(EarlyStopping):
        def _evaluate_stopping_criteria(self, current: Tensor) -> Any:
            seen.append(float(current))
            return super()._evaluate_stopping_criteria(current)

    seen: list[float] = []
    stop = Stop("quality", mode="max", patience=9)
    name = "{epoch}-{quality:.2f}-{val_loss:.0f}"
    save = ModelCheckpoint(tmp_path, name, "quality", mode="max", save_top_k=-1)
    pruning = callback(1, guard=Guard(0.1, "quality"), reset_monitors=reset)
    trainer = fit(
        ByWidth(only_whole),
        [save, *ordered(pruning, stop, ours_first)],
        max_epochs=7,
        enable_checkpointing=True,
    )
    # Cut before epochs 2 and 3, rolled back after both.
    assert [step.rolled_back for step in pruning.steps] == [True, True]
    assert trainer.current_epoch == 7
    assert seen == pytest.approx([0.9] * 7)
    files = sorted(path.name for path in tmp_path.glob("epoch*"))
    assert [name.rpartition("-")[0] for name in files] == [f"epoch={n}-quality=0.90" for n in range(7)]
    assert not any("nan" in name or "inf" in name for name in files)


@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_early_stopping_passes_over_an_epoch_that_logs_nothing_after_a_cut(
    fit: Fit, at_epoch_end: bool
) -> None:
    class Rarely(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])
            if self.current_epoch % 2 == 0:
                self.log("val_loss", self.script[self.current_epoch])

    stop = EarlyStopping("val_loss", patience=3, check_on_train_epoch_end=at_epoch_end)
    module = Rarely([0.1, 0.1, 5.0, 0.1, 4.0])
    trainer = fit(module, [stop, callback()], max_epochs=5)
    assert trainer.current_epoch == 5
    assert stop.best_score == 4.0


def test_a_network_that_diverges_is_stopped_after_a_cut_too(fit: Fit) -> None:
    stop = EarlyStopping("val_loss")
    trainer = fit(Scripted([0.1, torch.inf, 0.1, 0.1]), [stop, callback()], max_epochs=4)
    assert trainer.current_epoch == 2
