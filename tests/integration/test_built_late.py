"""Networks that a module builds when the fit begins, in setup() or in configure_model()."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers.fits import (
    ALL_HALVED,
    Classifier,
    Fit,
    callback,
    conv_net,
    ordered,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn

from acsp_lightning import PrunedCheckpointMixin


class Late(PrunedCheckpointMixin, Classifier):
    """Has no network of its own yet; ``frozen`` parts of it are named."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__(nn.Identity())
        del self.net
        self.frozen = frozen

    def build(self) -> None:
        if not hasattr(self, "net"):
            self.net = conv_net().requires_grad_(not self.frozen)


class InSetup(Late):
    def setup(self, stage: str) -> None:
        self.build()


class InConfigureModel(Late):
    def configure_model(self) -> None:
        self.build()


LATE = pytest.mark.parametrize("late", [InSetup, InConfigureModel])


@LATE
def test_it_is_cut_as_one_that_was_there_before(fit: Fit, late: type[Late]) -> None:
    module, early = late(), Classifier()
    pruning, expected = callback(), callback()
    fit(module, [pruning], train=train_loader(shuffle=False))
    fit(early, [expected], train=train_loader(shuffle=False))
    assert widths(module) == ALL_HALVED
    assert pruning.steps[0].plan == expected.steps[0].plan
    assert same_state(snapshot(module), snapshot(early))


@LATE
def test_a_frozen_one_is_refused_when_it_is_there(fit: Fit, late: type[Late]) -> None:
    module = late(frozen=True)
    with pytest.raises(ValueError, match=f"All parameters of {late.__name__} are frozen"):
        fit(module, [callback()])
    assert module.steps == 0


@pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback with a model that overrides"
)
def test_an_averaged_copy_of_it_is_cut_too(fit: Fit) -> None:
    averaging = EMAWeightAveraging(decay=0.5)
    fit(InConfigureModel(), [averaging, callback()])
    assert averaging._average_model is not None
    assert widths(averaging._average_model.module) == ALL_HALVED


@pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback with a model that overrides"
)
@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    ("late", "average"),
    [
        (InSetup, lambda: EMAWeightAveraging(decay=0.5)),
        (InSetup, lambda: StochasticWeightAveraging(0.01)),
        (InConfigureModel, lambda: StochasticWeightAveraging(0.01)),
    ],
)
def test_an_average_that_copied_before_it_was_there_is_refused(
    fit: Fit, late: type[Late], average: Any, ours_first: bool
) -> None:
    module = late()
    averaging = average()
    said = (
        rf"{type(averaging).__name__} averages nothing: it copied {late.__name__} before "
        r"'net.conv1.weight' was built, in setup\(\) or later. Build the network in __init__"
    )
    with pytest.raises(ValueError, match=said) as caught:
        fit(module, ordered(callback(), averaging, ours_first))
    early_enough = isinstance(averaging, EMAWeightAveraging)
    assert ("or configure_model()" in str(caught.value)) == early_enough
    assert module.steps == 0


@LATE
def test_a_resumed_fit_builds_it_and_loads_the_cut_one(
    fit: Fit, make_trainer: Fit, late: type[Late], tmp_path: Path
) -> None:
    trainer = fit(late(), [callback()], max_epochs=2)
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    module, pruning = late(), callback()
    resumed = make_trainer(pruning, max_epochs=4)
    resumed.fit(module, train_loader(), val_loader(), ckpt_path=tmp_path / "cut.ckpt")
    assert widths(module) == ALL_HALVED
    assert resumed.current_epoch == 4


def loaded(kind: type[Late], path: Path) -> Any:
    return kind.load_from_checkpoint(path, map_location="cpu")


def test_load_from_checkpoint_builds_what_configure_model_builds(fit: Fit, tmp_path: Path) -> None:
    """As Lightning does it for uncut networks."""
    module = InConfigureModel()
    trainer: pl.Trainer = fit(module, [callback()])
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    assert same_state(snapshot(loaded(InConfigureModel, tmp_path / "cut.ckpt")), snapshot(module))
