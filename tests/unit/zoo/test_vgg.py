import pytest
import torch
import torchvision
from torch import nn

from acsp_lightning.zoo import VGG, vgg16_bn, vgg19_bn


@pytest.mark.parametrize(
    ("stages", "channels", "side", "classes"),
    [
        ([[4]], 1, 2, 2),
        ([[4, 6], [8]], 1, 8, 10),
        ([[4], [4], [4], [4], [4]], 3, 32, 100),
        ([[4], [8]], 3, 9, 5),
    ],
)
def test_logits_have_one_column_per_class(
    stages: list[list[int]], channels: int, side: int, classes: int
) -> None:
    network = VGG(stages, num_classes=classes, in_channels=channels)
    assert network(torch.rand(2, channels, side, side)).shape == (2, classes)


@pytest.mark.parametrize(
    ("build", "official"),
    [(vgg16_bn, torchvision.models.vgg16_bn), (vgg19_bn, torchvision.models.vgg19_bn)],
)
def test_convolutions_are_those_of_torchvision(build, official) -> None:
    with torch.device("meta"):  # the large classifier of the official one is of no interest
        networks = build(num_classes=7), official()
    shapes, expected = (
        [m.weight.shape for m in network.modules() if isinstance(m, nn.Conv2d)] for network in networks
    )
    assert shapes == expected


def test_vgg16_for_32x32_has_the_published_weights() -> None:
    convolutions = [layer for layer in vgg16_bn().modules() if isinstance(layer, nn.Conv2d)]
    # 3x3 weights of configuration D in Simonyan and Zisserman: 14.71 million with the biases.
    assert len(convolutions) == 13
    assert sum(layer.weight.numel() for layer in convolutions) == 14_710_464


def test_layers_are_named_by_place() -> None:
    names = dict(VGG([[4], [6, 8]]).named_modules())
    assert isinstance(names["features.stage2.conv2"], nn.Conv2d)
    assert names["features.stage2.conv2"].out_channels == 8


@pytest.mark.parametrize("stages", [[], [[4], []]])
def test_empty_stages_are_refused(stages: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        VGG(stages)
