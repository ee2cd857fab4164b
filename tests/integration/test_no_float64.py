"""A network on a device without float64 is captured, decided on and recovered as on the CPU."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from helpers.fits import CLASSES, conv_net, noisy_images
from helpers.no_float64 import CPU, DEVICE, OnDevice, device_without_float64, moved
from torch import nn

from acsp_lightning import PruningSettings, SelectionConfig, apply_plan, measure_complexity
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.statistics import Captured
from acsp_lightning.measure.accuracy import count_correct
from acsp_lightning.selection.damage import output_sizes
from acsp_lightning.selection.proposal import Proposal, propose
from acsp_lightning.selection.weighing import weigh_groups
from acsp_lightning.structure.batchnorm import recalibrate_batchnorm
from acsp_lightning.structure.fold import recover_consumers
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.refit import Refit, prepare_refit, refit_layers
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.structure.verification import unseen_layers

IMAGES, LABELS = noisy_images(60, seed=2).tensors
BEFORE = measure_complexity(conv_net().eval(), IMAGES[:1])


@dataclass
class Found:
    captured: Captured
    outputs: Refit
    proposal: Proposal


def groups_of(model: nn.Module) -> tuple[ChannelGroup, ...]:
    return trace_groups(model, (IMAGES[:2],)).groups


def looked_at(
    model: nn.Module,
    groups: tuple[ChannelGroup, ...],
    selection: SelectionConfig,
    device: torch.device = CPU,
) -> Found:
    """Captured, and decided on, in the order of a cut."""
    capture = ActivationCapture(model, groups, selection.grid, CLASSES)
    capture.attach()
    for images, labels in zip(IMAGES.split(20), LABELS.split(20), strict=True):
        capture.run((images.to(device),), labels.to(device))
    capture.detach()
    captured = Captured(None, groups, capture.finish().to(device))
    layers = dict.fromkeys(side.layer for group in groups for side in group.consumers)
    outputs = prepare_refit(model, layers, [(part.to(device),) for part in IMAGES.split(25)])
    settings = PruningSettings(selection=selection)
    sizes = output_sizes(outputs.targets)
    weighed = weigh_groups(model, groups, captured.activations, selection, sizes=sizes)
    return Found(captured, outputs, propose(captured, weighed, settings, BEFORE))


@pytest.fixture
def network() -> nn.Module:
    model = conv_net().eval()
    recalibrate_batchnorm(model.train(), [IMAGES], 1)
    return model.eval()


@pytest.mark.parametrize(
    "selection",
    [SelectionConfig(), SelectionConfig.paper(), SelectionConfig(flops=0.5, criterion="mean_jm")],
)
def test_the_decisions_are_those_of_the_cpu(network: nn.Module, selection: SelectionConfig) -> None:
    groups = groups_of(network)
    expected = looked_at(network, groups, selection)
    with device_without_float64() as device:
        found = looked_at(moved(copy.deepcopy(network)), groups, selection, device)
    assert found.proposal.plan == expected.proposal.plan
    assert found.proposal.comparison.classes == CLASSES
    for layer, sums in found.captured.activations.outputs.items():
        assert sums.total.device == DEVICE, layer
    for layer, moments in found.captured.activations.input_moments.items():
        assert moments.device == CPU, layer
        torch.testing.assert_close(moments, expected.captured.activations.input_moments[layer])
    assert found.proposal.maps.keys() == expected.proposal.maps.keys()


def test_statistics_that_lie_on_the_cpu_go_back_as_far_as_they_can(network: nn.Module) -> None:
    """Those of a checkpoint."""
    activations = looked_at(network, groups_of(network), SelectionConfig(keep=0.5)).captured.activations
    with device_without_float64() as device:
        there = activations.to(device)
        assert {sums.total.device for sums in there.outputs.values()} == {DEVICE}
        assert {moments.total.device for moments in there.inputs.values()} == {CPU}


def test_consumers_recover_as_on_the_cpu(network: nn.Module) -> None:
    groups, selection = groups_of(network), SelectionConfig(keep=0.5)
    expected = looked_at(network, groups, selection)
    plan = expected.proposal.plan
    smaller = copy.deepcopy(network)
    sliced = apply_plan(smaller, plan)
    there = moved(copy.deepcopy(smaller))
    parameters = dict(there.named_parameters())

    recover_consumers(smaller, plan, groups, sliced, expected.captured.activations.input_moments)
    refit_layers(smaller, plan, expected.outputs)
    with device_without_float64() as device:
        found = looked_at(moved(copy.deepcopy(network)), groups, selection, device)
        entries = [replace(e, parameter=parameters[e.name], old=OnDevice(e.old)) for e in sliced]
        recover_consumers(there, plan, groups, entries, found.captured.activations.input_moments)
        refit_layers(there, plan, found.outputs)
        for name, parameter in smaller.named_parameters():
            assert parameters[name].device == DEVICE
            torch.testing.assert_close(
                parameters[name].cpu(), parameter.detach(), rtol=1e-3, atol=1e-4, msg=name
            )
        batches = [(IMAGES.to(device), LABELS.to(device))]
        counts = count_correct(there, batches, lambda batch: batch)
        assert unseen_layers(there, (IMAGES[:2].to(device),)) == ()
    assert counts == count_correct(smaller, [(IMAGES, LABELS)], lambda batch: batch)
