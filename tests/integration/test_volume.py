"""How much is cut, decided by what it costs: fits on real digits, measured from outside."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Classifier, Fit, Saver, callback, job, val_loader
from helpers.outputs import second
from torch import Tensor, nn

from acsp_lightning import ACSPPruningCallback, PruningStep, SelectionConfig, preview
from acsp_lightning.capture.holdout import held_back
from acsp_lightning.functional import WidthReason
from acsp_lightning.zoo import VGG, DigitsDataModule, ImageClassifier


def sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**quiet, **options})


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    return DigitsDataModule(batch_size=32)


@pytest.fixture(scope="module")
def trained(digits: DigitsDataModule) -> VGG:
    pl.seed_everything(0, verbose=False)
    module = ImageClassifier(VGG([[16, 16], [24]], in_channels=1), optimizer=sgd(0.05))
    trainer(max_epochs=5).fit(module, digits)
    return module.network.eval()


@pytest.fixture
def cut(trained: VGG, digits: DigitsDataModule, tmp_path: Path) -> Any:
    """Cuts by the callback in a fit that learns nothing: one training batch, learning rate 0."""

    def run(epochs: int = 1, **options: Any) -> tuple[VGG, list[PruningStep]]:
        pruning = ACSPPruningCallback(
            range(epochs), selection=SelectionConfig(**options), report_dir=tmp_path, report_plots=False
        )
        module = ImageClassifier(copy.deepcopy(trained).train(), optimizer=sgd(0.0))
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.0
        fit = trainer(max_epochs=epochs + 1, limit_train_batches=1, callbacks=[pruning])
        fit.fit(module, digits)
        return module.network.eval(), pruning.steps

    return run


def images_held_back(digits: DigitsDataModule) -> tuple[Tensor, Tensor]:
    batches = list(digits.val_dataloader())
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    rows = held_back(0, len(labels), 0.5)
    return images[rows], labels[rows]


def right(network: nn.Module, digits: DigitsDataModule) -> Tensor:
    images, labels = images_held_back(digits)
    with torch.no_grad():
        return (network(images).argmax(1) == labels).double()


def shares(step: PruningStep) -> float:
    return step.after.flops / step.before.flops


def assert_counted(step: PruningStep, flops: int) -> None:
    """A depth counts the pooling, which no group has, at its full width."""
    pooling = step.before.by_layer["network.pool"] - step.after.by_layer["network.pool"]
    assert flops == step.after.flops + pooling


def test_the_default_measures_and_cuts_at_the_knee(cut: Any, trained: VGG, digits: Any) -> None:
    network, (step,) = cut()
    found = step.trade_off
    assert found is not None
    assert found.knee
    assert found.tolerated is None
    assert {s.reason for s in step.selections.values()} == {WidthReason.MEASURED_KNEE}
    assert {n: s.k for n, s in step.selections.items()} == found.depths[found.knee].widths
    assert_counted(step, found.depths[found.knee].flops)
    before, after = right(trained, digits), right(network, digits)
    assert found.depths[0].fidelity.accuracy == pytest.approx(float(before.mean()))
    assert before.mean() > 0.93
    # The cut itself recovers with all samples, what was measured with a part of them.
    assert after.mean() >= before.mean() - 0.03
    assert step.after.flops < 0.9 * step.before.flops


@pytest.mark.parametrize("tolerance", [0.03, 0.1])
def test_a_cut_loses_no_more_than_is_tolerated(
    cut: Any, trained: VGG, digits: Any, tolerance: float
) -> None:
    network, (step,) = cut(tolerance=tolerance)
    lost = right(trained, digits) - right(network, digits)
    found = step.trade_off
    assert found is not None
    assert found.tolerated
    # Two samples: those that the loss was measured on, and these.
    measured = found.depths[found.tolerated].fidelity.drop.error
    assert lost.mean() <= tolerance + math.hypot(measured, lost.std() / len(lost) ** 0.5)
    assert {s.reason for s in step.selections.values()} == {WidthReason.TOLERANCE}
    # The next deeper depth that was measured is at most a tenth below, or costs more.
    deeper = found.depths[found.tolerated + 1]
    assert deeper.fidelity.drop.mean > 0
    assert_counted(step, found.depths[found.tolerated].flops)


def test_more_is_cut_where_more_is_tolerated(cut: Any) -> None:
    kept = [shares(cut(tolerance=tolerance)[1][0]) for tolerance in (0.03, 0.1, 0.5)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 1.2 * kept[2]


def test_a_target_within_the_tolerance_is_met(cut: Any) -> None:
    _, (step,) = cut(tolerance=0.5, flops=0.7)
    assert 0.6 < shares(step) <= 0.7
    assert {s.reason for s in step.selections.values()} == {WidthReason.LEAST_DAMAGE}
    _, (alone,) = cut(flops=0.7)
    assert alone.trade_off is None
    assert abs(shares(alone) - shares(step)) < 0.1


def test_a_target_beyond_the_tolerance_stops_short_of_it(cut: Any) -> None:
    with pytest.warns(UserWarning, match=r"flops=0\.1 would cost .* more than selection\.tolerance"):
        _, (both,) = cut(tolerance=0.03, flops=0.1)
    _, (alone,) = cut(tolerance=0.03)
    assert both.layers == alone.layers
    assert shares(both) > 0.1


@pytest.mark.filterwarnings("ignore:Every measured cut loses more accuracy")
def test_over_two_cuts_the_tolerance_counts_from_the_first_network(
    cut: Any, trained: VGG, digits: Any
) -> None:
    """Of a network that does not train between them, the second cut has only what the first left."""
    tolerance = 0.05
    network, (first, then) = cut(epochs=2, tolerance=tolerance)
    assert first.trade_off is not None
    assert then.trade_off is not None
    start = float(right(trained, digits).mean())
    assert first.trade_off.depths[0].fidelity.accuracy == pytest.approx(start)
    between = then.trade_off.depths[0].fidelity.accuracy
    assert then.trade_off.tolerated is not None
    left = tolerance - (start - between)
    chosen = then.trade_off.depths[then.trade_off.tolerated]
    lost = chosen.fidelity.drop
    assert then.trade_off.tolerated == 0 or lost.mean <= left + lost.error
    assert start - float(right(network, digits).mean()) <= tolerance + 2 * max(lost.error, 0.01)
    # Counted from the second network it would have gone deeper.
    assert start - between > 0.01
    again = preview(network, digits.val_dataloader(), SelectionConfig(tolerance=tolerance))
    assert again.after.flops < 0.95 * then.after.flops


@pytest.mark.parametrize("options", [{}, {"tolerance": 0.05}, {"tolerance": 0.05, "flops": 0.4}])
@pytest.mark.filterwarnings("ignore:flops=0.4 would cost")
def test_a_preview_decides_the_same(
    cut: Any, trained: VGG, digits: Any, options: dict[str, float]
) -> None:
    module = ImageClassifier(copy.deepcopy(trained), optimizer=sgd(0.0))
    expected = preview(module, digits.val_dataloader(), SelectionConfig(**options))  # type: ignore[arg-type]
    _, (step,) = cut(**options)
    assert step.plan == expected.plan
    assert step.trade_off == expected.trade_off
    assert step.samples == expected.samples == int((~held_back(0, 360, 0.5)).sum())
    assert (step.accuracy_before, step.accuracy_after) == (
        expected.accuracy_before, expected.accuracy_after
    )  # fmt: skip


# -- a fit that is interrupted, and what is refused before one -----------------------------------------
MOMENTS = ("epoch2-batch3", "epoch2-step12-validated", "epoch2-end", "epoch3-batch0")


@pytest.mark.filterwarnings("ignore:Every measured cut loses", "ignore:The measured trade-off")
@pytest.mark.parametrize("options", [{"tolerance": 0.2}, {"tolerance": 0.2, "flops": 0.6}])
def test_interrupted_equals_uninterrupted(make_trainer: Fit, tmp_path: Path, options: Any) -> None:
    def measured() -> ACSPPruningCallback:
        return callback(2, 3, selection=SelectionConfig(**options))

    whole = job(make_trainer, measured(), Saver(tmp_path), val=val_loader(240), max_epochs=5)
    assert all(step["trade_off"] is not None for step in whole["steps"])
    assert whole["steps"][0]["after"]["flops"] < whole["steps"][0]["before"]["flops"]
    for moment in MOMENTS:
        path = tmp_path / f"{moment}.ckpt"
        resumed = job(make_trainer, measured(), val=val_loader(240), max_epochs=5, ckpt_path=path)
        assert resumed["widths"] == whole["widths"], moment
        for name, tensor in whole["weights"].items():
            assert torch.equal(resumed["weights"][name], tensor), (moment, name)
        for mine, other in zip(resumed["steps"], whole["steps"], strict=True):
            assert mine["trade_off"] == other["trade_off"], moment


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs 130 samples .* so 260 validation samples, .* Validate on more"),
        ({"read_outputs": second}, "no class scores"),
    ],
)
def test_refused_before_training(fit: Fit, options: dict[str, Any], message: str) -> None:
    class Pair(Classifier):
        def forward(self, images: Any) -> Any:
            scores = super().forward(images)
            return (scores, None) if options and not self.training else scores

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    module = Pair()
    pruning = callback(selection=SelectionConfig(tolerance=0.03), **options)
    with pytest.raises(ValueError, match=message):
        fit(module, [pruning], val=val_loader(240))
    assert module.steps == 0


def test_few_samples_leave_the_decision_to_the_damage(fit: Fit) -> None:
    pruning = callback(selection=SelectionConfig())
    with pytest.warns(UserWarning, match="Cuts cannot be measured on 9 samples"):
        fit(Classifier(), [pruning])
    (step,) = pruning.steps
    expected = callback(selection=SelectionConfig(curve="damage"))
    fit(Classifier(), [expected])
    assert step.plan == expected.steps[0].plan
    assert step.trade_off is None
