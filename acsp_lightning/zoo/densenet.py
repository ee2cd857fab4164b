"""DenseNet for 32x32 images, without bottlenecks and compression."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["DenseNet", "densenet40"]


class DenseNet(nn.Module):
    """Dense blocks of 3x3 convolutions that take all previous feature maps; then one linear layer.

    Every layer is BatchNorm, ReLU and a convolution without bias that adds ``growth`` channels to its
    input. Between two blocks a 1x1 convolution as wide as its input and 2x2 average pooling halve the
    image. Layers are numbered from one: ``block2.layer7.conv``.

    Args:
        layers: number of layers of every block, each at least 1.
        growth: channels that each layer adds, at least 1.
        stem: channels of the first convolution, at least 1.
        num_classes: number of logits, at least 1.
        in_channels: channels of the image, at least 1.

    Raises:
        ValueError: if there is no block, or a block without a layer.

    References:
        G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, "Densely Connected Convolutional Networks",
        2017, section 3 and table 2.
    """

    def __init__(
        self,
        layers: Sequence[int],
        growth: int = 12,
        stem: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not layers or min(layers) < 1:
            raise ValueError(
                "`layers` must hold at least one block, and every block at least one layer; found "
                f"{layers!r}. Write for example [12, 12, 12]."
            )
        self.stem = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        channels = stem
        for place, count in enumerate(layers, start=1):
            if place > 1:
                self.blocks.add_module(f"transition{place - 1}", _Transition(channels))
            block = nn.Sequential()
            for layer in range(1, count + 1):
                block.add_module(f"layer{layer}", _DenseLayer(channels, growth))
                channels += growth
            self.blocks.add_module(f"block{place}", block)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            images: float, shape (B, in_channels, H, W), with H and W at least 2 ** (blocks - 1).

        Returns:
            Logits, shape (B, num_classes).
        """
        maps = self.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.classifier(maps.mean((2, 3)))
        return logits


class _DenseLayer(nn.Module):
    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps, self.conv(self.relu(self.norm(maps)))], dim=1)


class _Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, maps: Tensor) -> Tensor:
        reduced: Tensor = self.pool(self.conv(self.relu(self.norm(maps))))
        return reduced


def densenet40(num_classes: int = 10) -> DenseNet:
    """DenseNet-40 (k = 12) for 32x32 images: twelve layers a block, 1.0 million parameters."""
    return DenseNet([12, 12, 12], growth=12, num_classes=num_classes)
