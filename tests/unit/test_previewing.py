"""A preview says what a cut would give, and leaves everything as it is."""

from collections import UserDict
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    HALF,
    Classifier,
    Fit,
    callback,
    hooks,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from torch import Tensor
from torch.utils.data import DataLoader

from acsp_lightning import SelectionConfig, preview
from acsp_lightning.capture.batches import read_batch
from acsp_lightning.measure.accuracy import count_correct


def trained(fit: Fit) -> Classifier:
    module = Classifier()
    fit(module, max_epochs=2)
    return module


def test_a_preview_is_what_the_callback_then_does(fit: Fit) -> None:
    module = trained(fit)
    expected = preview(module, val_loader(), HALF)
    assert expected.epoch is None
    assert expected.layers == {n: (w * 2, w) for n, w in ALL_HALVED.items() if n != "net.fc2"}

    # A learning rate of zero: the cut is of the network that was previewed.
    pruning = callback(report_plots=True)
    module.configure = lambda network: torch.optim.SGD(network.parameters(), lr=0.0)
    for layer in module.modules():
        layer.momentum = 0.0  # of BatchNorm
    fit(module, [pruning], max_epochs=2)
    (step,) = pruning.steps
    found, told = step.to_dict(), expected.to_dict()
    for name in found.keys() - {"epoch", "selections", "maps", "network", "end"}:
        assert found[name] == told[name], name
    for name, selection in step.selections.items():
        assert torch.equal(selection.kept, expected.selections[name].kept)
        torch.testing.assert_close(selection.coverage, expected.selections[name].coverage)
        torch.testing.assert_close(
            step.maps[name].classes.after, expected.maps[name].classes.after, equal_nan=True
        )


@pytest.mark.parametrize("recovery", ["least_squares", "fold", "none"])
def test_nothing_is_touched(fit: Fit, recovery: Any) -> None:
    module = trained(fit)
    module.train()
    module.net.bn1.eval()
    modes = {name: part.training for name, part in module.named_modules()}
    state, seed, count = snapshot(module), torch.get_rng_state(), hooks(module)
    parameters = [id(parameter) for parameter in module.parameters()]
    step = preview(module, val_loader(shuffle=True), HALF, recovery=recovery)
    assert step.after.flops < step.before.flops
    assert same_state(snapshot(module), state)
    assert torch.equal(torch.get_rng_state(), seed)
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert hooks(module) == count
    assert [id(parameter) for parameter in module.parameters()] == parameters


def test_accuracies_are_those_of_the_network_and_of_its_cut_copy(fit: Fit) -> None:
    module = trained(fit)
    step = preview(module, val_loader(), HALF)
    right, seen = count_correct(module, val_loader(), read_batch) or (0, 1)
    assert step.accuracy_before == right / seen
    assert step.samples == seen == 18


def test_a_part_of_the_data_and_a_dial(fit: Fit) -> None:
    module = trained(fit)
    step = preview(module, val_loader(), SelectionConfig(flops=0.6), max_batches=2)
    assert step.samples == 12
    assert step.after.flops <= 0.6 * step.before.flops
    whole = preview(module, val_loader(), SelectionConfig(keep=1.0))
    assert whole.after == whole.before
    assert not whole.plan
    assert not whole.maps


def test_the_first_of_several_cuts(fit: Fit) -> None:
    step = preview(trained(fit), val_loader(), HALF, layers_per_epoch=1)
    assert list(step.layers) == list(step.selections) == list(step.maps) == ["net.conv1"]
    assert step.layers["net.conv1"] == (8, 4)


def test_latency_on_request(fit: Fit) -> None:
    step = preview(trained(fit), val_loader(), HALF, latency_batch_sizes=[2])
    assert [found.before.batch_size for found in step.latency] == [2]


class Empty:
    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        (Empty(), {}, "no batch to capture"),
        (iter(val_loader()), {}, "which can be read once; a preview reads the batches several times"),
        (val_loader(), {"include": ["net.nothing"]}, "net.nothing"),
        (val_loader(), {"recovery": "leastsquares"}, "recovery is 'leastsquares'; it must be one of"),
        (val_loader(), {"recovery_samples": 0}, "recovery_samples is 0; it must be an integer >= 1"),
        (val_loader(), {"max_batches": 0}, "max_batches is 0"),
        (val_loader(), {"layers_per_epoch": 0}, "layers_per_epoch is 0"),
        (val_loader(), {"round_to": 0}, "round_to is 0"),
        (DataLoader([(torch.zeros(1, 6, 6), 0.5)] * 4), {}, "integer class index"),
        (DataLoader([(torch.zeros(1, 6, 6), 0)] * 4), {}, "only class 0"),
    ],
)
def test_refusals(loader: Any, options: dict[str, Any], message: str) -> None:
    module = Classifier()
    with pytest.raises(ValueError, match=message):
        preview(module, loader, **options)
    assert widths(module) == widths(Classifier())


def test_training_data_do_as_well(fit: Fit) -> None:
    assert preview(trained(fit), train_loader(), HALF).samples == 24


class Feature(UserDict[str, Tensor]):
    """As the batches of Hugging Face's transformers: a mapping that moves by itself."""

    moved = 0

    def to(self, device: torch.device) -> "Feature":
        Feature.moved += 1
        return Feature({key: value.to(device) for key, value in self.items()})


def test_batches_that_are_no_trees_are_moved_too() -> None:
    batches = [Feature(pixel_values=images, labels=labels) for images, labels in val_loader()]
    step = preview(Classifier(), batches, HALF)
    assert Feature.moved >= 2 * len(batches)
    assert step.plan == preview(Classifier(), val_loader(), HALF).plan


class Data(pl.LightningDataModule):
    def val_dataloader(self) -> Any:
        return val_loader()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            Data(),
            r"dataloader is a Data, .* Pass its val_dataloader\(\), after prepare_data\(\) and setup",
        ),
        (3, "dataloader is a int, which has no batches to iterate over. Pass a DataLoader, or a list"),
    ],
)
def test_what_has_no_batches_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        preview(Classifier(), given)
