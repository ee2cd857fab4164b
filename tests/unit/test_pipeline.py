"""The steps of a cut, one by one, on networks that no Trainer runs."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.captured import captured
from helpers.fits import CLASSES, conv_net, same_state, snapshot, val_loader
from helpers.networks import plain, randomized
from helpers.oracle import masked_outputs
from torch import nn

from acsp_lightning import PruningSettings, SelectionConfig, pipeline
from acsp_lightning.measure.accuracy import ClassCounts
from acsp_lightning.measure.complexity import measure_complexity
from acsp_lightning.previewing import CopySite
from acsp_lightning.selection.proposal import propose
from acsp_lightning.selection.weighing import weigh_groups

HALF = PruningSettings(selection=SelectionConfig(keep=0.5), recovery="none")


@pytest.mark.usefixtures("every_position")
def test_batches_are_captured_as_one() -> None:
    """Batch by batch as all images in one pass; the network stays as it was."""
    model = conv_net(dropout=0.5).train()
    before = snapshot(model)
    example, found = pipeline.capture_network(model, val_loader(), HALF)
    assert found.epoch is None
    assert found.activations.samples == 18
    assert same_state(snapshot(model), before)
    assert model.training
    settings = PruningSettings(selection=SelectionConfig(keep=0.5, grid=None))
    _, found = pipeline.capture_network(model, val_loader(), settings)
    _, expected = captured(copy.deepcopy(model))
    for layer in expected.outputs:
        mean = found.activations.moments(layer).mean
        torch.testing.assert_close(mean, expected.moments(layer).mean, rtol=1e-4, atol=1e-5)
    for layer, moments in expected.input_moments.items():
        torch.testing.assert_close(found.activations.input_moments[layer], moments, rtol=1e-5, atol=1e-6)
    (traced,) = example.traced
    assert traced.shape[1:] == (1, 6, 6)


def test_no_batch_is_told() -> None:
    with pytest.raises(ValueError, match="no batch to capture"):
        pipeline.capture_network(conv_net(), [], HALF)


def test_without_recovery_the_cut_is_the_network_with_zeros_where_channels_were() -> None:
    model = randomized(plain())
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = (images, torch.arange(6) % CLASSES)
    example, found = pipeline.capture_network(model, [batch], HALF)
    weighed = weigh_groups(model, found.groups, found.activations, HALF.selection)
    proposal = propose(found, weighed, HALF, measure_complexity(model, example.counted))
    expected = masked_outputs(model, proposal.plan, (images,))
    recovery = pipeline.Recovery(example.traced, None, None, False)
    sliced = pipeline.prune_network(model, proposal, recovery)
    assert sliced
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected[0])


class Several:
    """A place of a cut with made-up counts of other processes."""

    def __init__(self, *others: ClassCounts | None) -> None:
        self.others = others

    def batches(self) -> Any:
        return val_loader()

    def on_all_ranks(self, work: Callable[[], Any]) -> list[Any]:
        return [work(), *self.others]


class Constant(nn.Module):
    """Says class 0 of everything."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(CLASSES)[torch.zeros(len(images), dtype=torch.int64)]


def counts(right: list[int], seen: list[int]) -> ClassCounts:
    return ClassCounts(torch.tensor(right), torch.tensor(seen))


@pytest.mark.parametrize(
    ("others", "right", "seen"),
    [
        ((), [6, 0, 0], [6, 6, 6]),
        ((counts([2, 0, 0], [2, 0, 0]), None), [8, 0, 0], [8, 6, 6]),
        # One that has met a label beyond the outputs counts it in a class of its own.
        (
            (counts([0, 5, 0], [1, 5, 0]), counts([0, 0, 1, 0], [0, 0, 1, 3])),
            [6, 5, 1, 0],
            [7, 11, 7, 3],
        ),
    ],
)
def test_accuracy_is_that_over_all_processes(others: Any, right: list[int], seen: list[int]) -> None:
    site: Any = Several(*others)
    found = pipeline.count_classified(site, Constant(), HALF)
    assert found is not None
    assert (found.right.tolist(), found.seen.tolist()) == (right, seen)
    assert found.accuracy == sum(right) / sum(seen)


def test_no_accuracy_where_nobody_has_class_scores() -> None:
    site: Any = Several(None)
    assert pipeline.count_classified(site, nn.Flatten(0), HALF) is None


def test_batchnorm_has_the_statistics_of_the_cut_network_after_a_refit() -> None:
    network, batches = conv_net().eval(), list(val_loader())
    settings = PruningSettings(selection=SelectionConfig(keep=0.5))
    example, found = pipeline.capture_network(network, batches, settings)
    proposal, recovery = pipeline.decide_cut(CopySite(network, batches), found, settings, example)
    pipeline.prune_network(network, proposal, recovery)
    assert recovery.refit is not None
    images = torch.cat([images for (images,) in recovery.refit.inputs])
    with torch.no_grad():
        given = network.conv1(images).movedim(1, 0).flatten(1)
    torch.testing.assert_close(network.bn1.running_mean, given.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.bn1.running_var, given.var(1, correction=0), rtol=1e-4, atol=1e-5)
