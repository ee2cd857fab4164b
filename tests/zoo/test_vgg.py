import pytest
import torch
from torch import nn

from acsp_lightning.zoo import VGG


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


def test_vgg16_for_32x32_has_the_published_convolutions() -> None:
    network = VGG([[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3])
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    weights = sum(layer.weight.numel() for layer in convolutions)
    # 3x3 weights of configuration D in Simonyan and Zisserman: 14.71 million with the biases.
    assert len(convolutions) == 13
    assert weights == 14_710_464


def test_layers_are_named_by_place() -> None:
    names = dict(VGG([[4], [6, 8]]).named_modules())
    assert isinstance(names["features.stage2.conv2"], nn.Conv2d)
    assert names["features.stage2.conv2"].out_channels == 8


@pytest.mark.parametrize("stages", [[], [[4], []]])
def test_empty_stages_are_refused(stages: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        VGG(stages)
