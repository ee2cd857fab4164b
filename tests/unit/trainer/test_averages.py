"""Averages of the weights, beside averages computed by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    Classifier,
    Fit,
    Probe,
    callback,
    cut_network,
    ordered,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor

ORDERS = pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])


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
