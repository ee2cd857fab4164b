"""What people look at, against the vectors it is made from."""

from dataclasses import replace

import pytest
import torch
from helpers.fits import CLASSES, conv_net, noisy_images
from torch import Tensor, nn

from acsp_lightning import SelectionConfig
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import class_separation, select_channels, separability_vectors
from acsp_lightning.selection import maps
from acsp_lightning.selection.allocation import Allocation, select_groups
from acsp_lightning.selection.maps import GroupMap, map_groups
from acsp_lightning.selection.weighing import weigh_groups
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.tracing import trace_groups

IMAGES, LABELS = noisy_images(18, seed=2).tensors


class Joined(nn.Module):
    """Two layers that make the same channels, joined in a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Conv2d(1, 6, 3, padding=1)
        self.right = nn.Conv2d(1, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.left(images) + self.right(images)).relu().mean((2, 3)))


def looked_at(model: nn.Module, keep: float) -> tuple[tuple[ChannelGroup, ...], Activations, Allocation]:
    model.eval()
    groups = trace_groups(model, (IMAGES[:2],), residual=True).groups
    capture = ActivationCapture(model, groups, 1, num_classes=3)
    capture.attach()
    capture.expect(LABELS)
    model(IMAGES)
    capture.detach()
    activations = capture.finish()
    config = SelectionConfig(keep=keep)
    weighed = weigh_groups(model, groups, activations, config)
    found = select_groups(groups, weighed, config, layer_flops={})
    return groups, activations, found


def view(group: ChannelGroup, activations: Activations, allocation: Allocation) -> GroupMap:
    return map_groups([group], allocation, activations)[group.name]


def test_the_map_is_as_true_as_it_says() -> None:
    model = conv_net()
    groups, activations, allocation = looked_at(model, 0.5)
    found = view(groups[0], activations, allocation)
    assert torch.equal(found.channels, torch.arange(8))
    vectors = separability_vectors(activations.moments("conv1"))
    apart = torch.cdist(vectors, vectors)
    shown = torch.cdist(found.places, found.places)
    stress = ((shown - apart).square().sum() / apart.square().sum()).sqrt()
    assert found.stress == pytest.approx(float(stress), rel=1e-6)
    # Principal components are the best two dimensions that are linear in the vectors.
    centred = vectors - vectors.mean(0)
    variances = torch.linalg.svdvals(centred).square()
    assert found.places.square().sum(0).tolist() == pytest.approx(variances[:2].tolist(), rel=1e-6)


def test_only_what_loses_channels_is_looked_at() -> None:
    model = conv_net()
    groups, activations, allocation = looked_at(model, 0.5)
    whole = looked_at(model, 1.0)[2]
    mixed = {**allocation.selections, "conv2": whole.selections["conv2"]}
    shown = map_groups(groups, replace(allocation, selections=mixed), activations)
    assert set(shown) == {"conv1", "fc1"}


def test_of_many_channels_the_heaviest_are_shown_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "MOST_CHANNELS", 5)
    model = conv_net()
    groups, activations, allocation = looked_at(model, 0.5)
    chosen = allocation.selections["conv1"]
    found = view(groups[0], activations, allocation)
    heaviest = chosen.weights.argsort(descending=True).tolist()
    stay = [c for c in heaviest if c in chosen.kept.tolist()]
    go = [c for c in heaviest if c not in stay]
    # Five of eight: of four that stay and four that go alike, as far as that goes.
    assert found.channels.tolist() == sorted(stay[:2] + go[:3])
    assert found.places.shape == (5, 2)


@pytest.mark.parametrize("limit", [2, 7, 10])
def test_whatever_the_widths_some_of_both_are_shown(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(maps, "MOST_CHANNELS", limit)
    points = torch.randn(21, 3, generator=torch.Generator().manual_seed(0))
    for width in range(3, 22):
        distances = torch.cdist(points[:width], points[:width])
        for k in range(2, width):
            chosen = select_channels(distances, k=k)
            shown = maps._shown(chosen)
            assert len(shown) == min(width, limit) == len(set(shown.tolist()))
            assert torch.equal(shown, shown.sort().values)
            stay = torch.isin(shown, chosen.kept)
            assert stay.any()
            assert (~stay).any()
            if k <= limit // 2:
                assert int(stay.sum()) == k


def test_classes_are_told_apart_by_the_better_of_several_producers() -> None:
    model = Joined()
    groups, activations, allocation = looked_at(model, 0.5)
    (group,) = groups
    found = view(group, activations, allocation).classes
    kept = allocation.selections[group.name].kept
    each = [class_separation(activations.moments(layer), kept) for layer in ("left", "right")]
    for name in ("before", "after"):
        best = torch.maximum(getattr(each[0], name), getattr(each[1], name))
        assert torch.equal(getattr(found, name).nan_to_num(9), best.nan_to_num(9))


def test_channels_that_separate_nothing_lie_in_one_place() -> None:
    model = conv_net()
    with torch.no_grad():
        model.conv1.weight.zero_()
    groups, activations, allocation = looked_at(model, 0.5)
    found = view(groups[0], activations, allocation)
    assert not found.places.any()
    assert found.stress == 0
