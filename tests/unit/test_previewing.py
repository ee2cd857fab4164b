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
from torch import Tensor, nn
from torch.utils.data import DataLoader

from acsp_lightning import PruningStep, SelectionConfig, preview
from acsp_lightning.capture.batches import read_batch
from acsp_lightning.capture.holdout import held_back
from acsp_lightning.measure.accuracy import count_correct
from acsp_lightning.structure.groups import STREAMS


class Added(nn.Module):
    """A layer that writes into a residual sum, as in RepVGG."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv(x)).relu()


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


# -- what cuts of several depths cost ------------------------------------------------------------------
MANY = val_loader(300)


@pytest.fixture(scope="module")
def learned() -> Classifier:
    module, optimizer = Classifier(), None
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        for batch in train_loader(48, shuffle=False):
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
    return module.eval()


@pytest.fixture(scope="module")
def traded(learned: Classifier) -> PruningStep:
    return preview(learned, MANY, SelectionConfig(flops=0.9), trade_off=[0.8, 0.5])


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_a_row_is_the_cut_to_these_flops_on_the_same_capture(
    learned: Classifier, traded: PruningStep, share: float
) -> None:
    cut = preview(learned, MANY, SelectionConfig(flops=share), trade_off=True)
    assert cut.trade_off is not None
    assert traded.trade_off is not None
    row = traded.trade_off.depths[traded.trade_off.targets[str(share)]]
    assert row == cut.trade_off.depths[cut.trade_off.targets[str(share)]]
    assert (row.flops, row.parameters) == (cut.after.flops, cut.after.parameters)
    assert list(row.widths.values()) == [after for _, after in cut.layers.values()]
    assert row.flops <= share * cut.before.flops
    assert cut.samples == traded.samples == int((~held_back(0, 300, 0.5)).sum())


def test_accuracies_are_those_on_the_samples_held_back(learned: Classifier, traded: PruningStep) -> None:
    images, labels = MANY.dataset.tensors  # type: ignore[attr-defined]
    rows = held_back(0, 300, 0.5)
    with torch.no_grad():
        right = learned(images[rows]).argmax(1) == labels[rows]
    assert traded.trade_off is not None
    uncut = traded.trade_off.depths[0].fidelity
    assert uncut.samples == int(rows.sum())
    assert uncut.accuracy == pytest.approx(float(right.double().mean()))


def test_a_trade_off_changes_no_decision_but_by_the_samples_it_takes(learned: Classifier) -> None:
    plain = preview(learned, MANY, SelectionConfig(flops=0.5))
    assert plain.trade_off is None
    assert plain.samples == 300
    measured = preview(learned, MANY, SelectionConfig(flops=0.5), trade_off=True)
    rows = ~held_back(0, 300, 0.5)
    images, labels = MANY.dataset.tensors  # type: ignore[attr-defined]
    parts = [(images[at][rows[at]], labels[at][rows[at]]) for at in torch.arange(300).split(6)]
    same = preview(learned, parts, SelectionConfig(flops=0.5))
    assert measured.layers == same.layers
    assert {n: s.kept.tolist() for n, s in measured.selections.items()} == {
        n: s.kept.tolist() for n, s in same.selections.items()
    }


@pytest.mark.parametrize("shares", [[0], [0.5, 1.5], [True], ["0.5"], [-1]])
def test_shares_that_are_none_are_refused(learned: Classifier, shares: Any) -> None:
    with pytest.raises(
        ValueError, match=r"trade_off has .*; shares of the FLOPs are numbers in \(0, 1\]"
    ):
        preview(learned, MANY, trade_off=shares)


@pytest.mark.parametrize("wrong", [0.5, "0.5", None])
def test_what_is_no_list_of_shares(learned: Classifier, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"trade_off is .*; it must be True, False, or a list"):
        preview(learned, MANY, trade_off=wrong)


@pytest.mark.parametrize("trade_off", [True, [0.8, 0.5]])
@pytest.mark.parametrize(
    ("selection", "found"),
    [
        (SelectionConfig(keep=0.5), "keep=0.5"),
        (SelectionConfig(curve="coverage"), "curve='coverage'"),
        (SelectionConfig.paper(), "curve='mss'"),
    ],
)
def test_a_trade_off_without_a_path_is_refused(
    learned: Classifier, selection: SelectionConfig, found: str, trade_off: Any
) -> None:
    with pytest.raises(ValueError, match=f"selection.{found} has none. Leave keep out and set curve"):
        preview(learned, MANY, selection, trade_off=trade_off)


def test_a_loader_that_shuffles_is_told(learned: Classifier) -> None:
    loader = DataLoader(MANY.dataset, batch_size=30, shuffle=True)
    with pytest.warns(UserWarning, match="validation loader shuffles its samples"):
        preview(learned, loader, SelectionConfig(flops=0.5), trade_off=True)
    # Nothing is held back for a cut to a share of the FLOPs.
    preview(learned, loader, SelectionConfig(flops=0.5))


def test_a_tolerance_of_a_network_at_chance_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"tolerance=0\.1 bounds a loss .* which is chance"):
        preview(Classifier(), MANY, SelectionConfig(tolerance=0.1))


def test_a_share_that_cannot_be_reached_is_refused(learned: Classifier) -> None:
    with pytest.raises(ValueError, match=r"A share of 0\.001 of the FLOPs cannot be reached"):
        preview(learned, MANY, trade_off=[0.5, 0.001])


def test_inputs_of_several_sizes_are_told_or_refused(learned: Classifier) -> None:
    """Forty of a size, of which twenty are held back, are too few."""

    class AnySize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).mean((2, 3))

    labels = torch.arange(40) % 3
    data = [(torch.randn(40, 1, size, size), labels) for size in (6, 8, 10)]
    with pytest.warns(UserWarning, match="of one size are held back, and 50 are needed"):
        preview(AnySize(), data)
    with pytest.raises(ValueError, match=r"tolerance=0\.2 cannot be measured: 2\d samples of one size"):
        preview(AnySize(), data, SelectionConfig(tolerance=0.2))


def test_too_few_samples_for_a_trade_off_are_told() -> None:
    with pytest.warns(UserWarning, match="Cuts cannot be measured on 9 samples"):
        step = preview(Classifier(), val_loader(), SelectionConfig(flops=0.5), trade_off=True)
    assert step.trade_off is None
    assert step.samples == 18


def test_that_sums_were_chosen_is_in_the_record(fit: Fit, logged: list[str]) -> None:
    """Of a network that has nothing else to cut, in a preview and in a fit."""
    torch.manual_seed(0)
    stem, head = nn.Conv2d(1, 8, 3, padding=1), [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    module = Classifier(nn.Sequential(stem, *(Added() for _ in range(2)), *head))
    assert preview(module, val_loader(), HALF).sums == STREAMS
    pruning = callback()
    fit(module, [pruning], max_epochs=2)
    assert STREAMS in logged
    assert [step.sums for step in pruning.steps] == [STREAMS]
    assert widths(module)["net.0"] == 4
