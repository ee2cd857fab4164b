"""What else holds the network, or remembers how good it was: averages, monitors, checkpoints, tuners."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    Probe,
    callback,
    conv_net,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from acsp_lightning import apply_plan, load_pruned

ORDERS = pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])


def ordered(pruning: pl.Callback, other: pl.Callback, ours_first: bool) -> list[pl.Callback]:
    return [pruning, other] if ours_first else [other, pruning]


def cut_network(state: dict[str, Tensor], plan: Any) -> dict[str, Tensor]:
    """What the plan makes of an uncut network."""
    module = Classifier()
    module.load_state_dict(state)
    apply_plan(module, plan)
    return snapshot(module)


# -- averaged copies ---------------------------------------------------------------------------------


class LiveWeights(pl.Callback):
    """All that an average of the live network is made of: its state after every training batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.states.append(snapshot(pl_module))


def mean(average: Tensor, state: Tensor, seen: int) -> Tensor:
    return average + (state - average) / (seen + 1)


def fading(average: Tensor, state: Tensor, seen: int) -> Tensor:
    return 0.7 * average + 0.3 * state


@ORDERS
@pytest.mark.parametrize(
    ("averaging", "formula"),
    [(WeightAveraging, mean), (lambda: EMAWeightAveraging(decay=0.7), fading)],
    ids=["mean", "ema"],
)
def test_the_average_goes_on_over_the_cut(
    fit: Fit, averaging: Callable[[], WeightAveraging], formula: Callable[..., Tensor], ours_first: bool
) -> None:
    module, pruning, live, other = Classifier(), callback(recovery="none"), LiveWeights(), averaging()
    fit(module, [*ordered(pruning, other, ours_first), live])
    (step,) = pruning.steps
    states = [
        cut_network(state, step.plan) if batch < 4 else state for batch, state in enumerate(live.states)
    ]
    assert widths(module) == ALL_HALVED
    found = dict(module.named_parameters())
    for name, parameter in found.items():
        average = states[0][name]
        for seen, state in enumerate(states[1:], start=1):
            average = formula(average, state[name], seen)
        torch.testing.assert_close(parameter.detach(), average)
    assert not torch.equal(found["net.fc2.weight"], states[-1]["net.fc2.weight"])


def test_consumers_recover_in_the_average_as_in_the_network(fit: Fit) -> None:
    class Compare(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.same = same_state(snapshot(other._average_model.module), snapshot(pl_module))

    # Without memory the average is the network of the last batch.
    other, compare, pruning = EMAWeightAveraging(decay=0.0), Compare(), callback()
    fit(Classifier(), [pruning, other, compare])
    assert pruning.steps[0].plan.kept("net.conv2", "in") is not None
    assert compare.same


@ORDERS
def test_swa_goes_on_over_the_cut(fit: Fit, ours_first: bool) -> None:
    module, pruning, probe = Classifier(), callback(1, recovery="none"), Probe()
    swa = StochasticWeightAveraging(0.01, swa_epoch_start=1)
    fit(module, [*ordered(pruning, swa, ours_first), probe])
    (step,) = pruning.steps
    assert widths(module) == ALL_HALVED
    states = [
        cut_network(probe.states["train_epoch_start", 0], step.plan),
        cut_network(probe.states["train_epoch_start", 1], step.plan),
        probe.states["train_epoch_start", 2],
    ]
    for name, parameter in module.named_parameters():
        expected = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(parameter.detach(), expected)
    # The extra epoch is for BatchNorm alone.
    assert len(probe.at("train_epoch_start", 3)) == 1
    assert (module.net.bn1.running_mean != states[-1]["net.bn1.running_mean"]).any()


@ORDERS
def test_the_extra_epoch_of_swa_is_never_a_cut_epoch(fit: Fit, ours_first: bool) -> None:
    swa = StochasticWeightAveraging(0.01, swa_epoch_start=1)
    with pytest.raises(ValueError, match="allowed is at most 1"):
        fit(Classifier(), ordered(callback(2), swa, ours_first))


AVERAGES = {
    "mean": WeightAveraging,
    "ema": lambda: EMAWeightAveraging(decay=0.7),
    "swa": lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1),
}


@ORDERS
@pytest.mark.parametrize("averaging", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")
def test_resuming_with_an_average(
    fit: Fit, make_trainer: Fit, tmp_path: Path, averaging: Any, ours_first: bool
) -> None:
    def callbacks() -> list[pl.Callback]:
        save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        return [*ordered(callback(), averaging(), ours_first), save]

    whole = Classifier()
    fit(whole, callbacks(), train=train_loader(shuffle=False), enable_checkpointing=True)
    for file in ("epoch=0.ckpt", "uncut-epoch=0.ckpt", "epoch=1.ckpt"):
        module = Classifier()
        trainer = make_trainer(*callbacks(), enable_checkpointing=True)
        trainer.fit(module, train_loader(shuffle=False), val_loader(), ckpt_path=tmp_path / file)
        assert widths(module) == ALL_HALVED
        assert same_state(snapshot(module), snapshot(whole)), file


# -- monitors ----------------------------------------------------------------------------------------


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


def test_the_last_uncut_network_is_kept(fit: Fit, tmp_path: Path) -> None:
    probe, save = Probe(), ModelCheckpoint(tmp_path / "files", filename="{epoch}")
    fit(Classifier(), [callback(0, 1), probe, save], enable_checkpointing=True)
    for epoch, expected in ((0, WIDTHS), (1, ALL_HALVED)):
        module = load_pruned(Classifier(), tmp_path / "files" / f"uncut-epoch={epoch}.ckpt")
        assert widths(module) == expected
        assert same_state(snapshot(module), probe.states["validation_end", epoch])


def test_no_file_without_a_checkpoint_callback(fit: Fit, tmp_path: Path) -> None:
    fit(Classifier(), [callback()])
    assert list(tmp_path.rglob("*.ckpt")) == []


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
