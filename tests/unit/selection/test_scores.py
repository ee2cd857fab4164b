"""Scores of channels against sums written out by hand."""

import pytest
import torch
from helpers.captured import IMAGES, LABELS, captured
from helpers.fits import CLASSES, conv_net
from torch import Tensor, nn

from acsp_lightning import SelectionConfig
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.functional import separability_vectors
from acsp_lightning.selection.scores import score_channels
from acsp_lightning.structure.tracing import trace_groups


def test_contribution_is_the_power_read_times_the_weights_that_read_it() -> None:
    model = conv_net()
    groups, activations = captured(model)
    maps = model[:8](IMAGES).detach().double().reshape(18, 6, 9)
    weights = model.fc1.weight.detach().double().reshape(10, 6, 9)
    expected = (maps.square().mean((0, 2)) * weights.square().sum((0, 2))).sqrt()
    found = score_channels(model, groups["conv2"], activations)
    assert torch.allclose(found.contributions, expected / expected.mean(), rtol=1e-5)
    assert found.contributions.mean() == pytest.approx(1)


def test_magnitude_is_the_l1_norm_of_the_filter() -> None:
    model = conv_net()
    groups, activations = captured(model)
    for name in ("conv1", "fc1"):
        weight = model.get_submodule(name).weight.detach().double()
        found = score_channels(model, groups[name], activations)
        assert torch.allclose(found.magnitudes, weight.abs().flatten(1).sum(1))


def test_distances_are_between_separability_vectors() -> None:
    model = conv_net()
    groups, activations = captured(model)
    found = score_channels(model, groups["conv1"], activations)
    vectors = separability_vectors(activations.moments("conv1"))
    assert torch.allclose(found.distances, torch.cdist(vectors, vectors), atol=1e-6)
    assert found.separability is None
    ranked = score_channels(model, groups["conv1"], activations, SelectionConfig(criterion="mean_jm"))
    assert torch.allclose(ranked.separability, vectors.mean(1))


class Branches(nn.Module):
    """One layer read by two; two layers joined in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 5, 3, padding=1)
        self.right = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        return self.head((self.left(x) + self.right(x)).mean((2, 3)))


@pytest.mark.usefixtures("every_position")
def test_several_consumers_and_producers_add_up() -> None:
    torch.manual_seed(1)
    model = Branches()
    groups, activations = captured(model, residual=True)
    stem = score_channels(model, groups["stem"], activations)
    energy = model.stem(IMAGES).relu().detach().double().square().mean((0, 2, 3))
    norms = sum(
        layer.weight.detach().double().square().sum((0, 2, 3)) for layer in (model.left, model.right)
    )
    expected = (energy * norms).sqrt()
    assert torch.allclose(stem.contributions, expected / expected.mean(), rtol=1e-5)

    joint = score_channels(model, groups["left"], activations, SelectionConfig(criterion="mean_jm"))
    vectors = torch.cat(
        [separability_vectors(activations.moments(name)) for name in ("left", "right")], dim=1
    )
    assert torch.allclose(joint.distances, torch.cdist(vectors, vectors), atol=1e-6)
    assert torch.allclose(joint.separability, vectors.mean(1))
    sums = [layer.weight.detach().double().abs().sum((1, 2, 3)) for layer in (model.left, model.right)]
    assert torch.allclose(joint.magnitudes, sums[0] + sums[1])


def test_distances_over_many_positions_are_symmetric_to_the_last_bit() -> None:
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 152, 3), nn.ReLU(), nn.Conv2d(152, 152, 1, groups=19), nn.Conv2d(152, 3, 1)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    groups, activations = captured(model)
    found = score_channels(model, groups["0"], activations)
    assert found.distances.shape == (19, 19)
    assert torch.equal(found.distances, found.distances.T)


def test_a_layer_that_contributes_nothing() -> None:
    model = conv_net()
    with torch.no_grad():
        model.fc2.weight.zero_()
    groups, activations = captured(model)
    assert score_channels(model, groups["fc1"], activations).contributions.tolist() == [1.0] * 10


def test_errors_name_the_layer() -> None:
    model = conv_net().eval()
    groups = trace_groups(model, (IMAGES[:2],)).groups
    capture = ActivationCapture(model, groups, None, num_classes=3)
    capture.attach()
    capture.expect(torch.zeros_like(LABELS))
    model(IMAGES)
    capture.detach()
    with pytest.raises(ValueError, match=r"Layer 'conv2': 1 of 3 classes have 2 samples"):
        score_channels(model, groups[1], capture.finish())
