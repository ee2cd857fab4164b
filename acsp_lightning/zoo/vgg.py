"""The VGG family with batch normalisation, for small images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["VGG", "vgg16_bn", "vgg19_bn"]


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each stage halving the image; then one linear layer.

    Every convolution is followed by BatchNorm and ReLU, every stage by a 2x2 max-pool, and the last
    stage by global average pooling. Convolutions have no bias, since BatchNorm cancels it. Layers are
    numbered from one: ``features.stage2.conv1``.

    Args:
        stages: output channels of every convolution, stage by stage; each at least 1.
        num_classes: number of logits, at least 1.
        in_channels: channels of the image, at least 1.

    Raises:
        ValueError: if there is no stage, or a stage without a convolution.
    """

    def __init__(
        self, stages: Sequence[Sequence[int]], num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        if not stages or not all(stages):
            raise ValueError(
                f"`stages` must hold at least one stage, and every stage at least one width; "
                f"found {stages!r}. Write for example [[32, 32], [64]]."
            )
        self.features = nn.Sequential()
        channels = in_channels
        for place, widths in enumerate(stages, start=1):
            self.features.add_module(f"stage{place}", _stage(channels, widths))
            channels = widths[-1]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            images: float, shape (B, in_channels, H, W), with H and W at least 2 ** len(stages).

        Returns:
            Logits, shape (B, num_classes).
        """
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(images))))
        return logits


def vgg16_bn(num_classes: int = 10) -> VGG:
    """VGG-16 with batch normalisation for 32x32 images: 13 convolutions, 14.7 million parameters."""
    return VGG([[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3], num_classes)


def vgg19_bn(num_classes: int = 10) -> VGG:
    """VGG-19 with batch normalisation for 32x32 images: 16 convolutions, 20.0 million parameters."""
    return VGG([[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4], num_classes)


def _stage(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, width in enumerate(widths, start=1):
        layers[f"conv{place}"] = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        layers[f"norm{place}"] = nn.BatchNorm2d(width)
        layers[f"relu{place}"] = nn.ReLU()
        in_channels = width
    layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)
