"""The residual networks of He et al. for 32x32 images, with parameter-free shortcuts."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResNet", "resnet20", "resnet32", "resnet44", "resnet56"]


class ResNet(nn.Module):
    """Stages of residual blocks of two 3x3 convolutions; then one linear layer.

    The first stage keeps the image's size, every further one halves it. Where a stage changes size and
    width, the shortcut takes every second pixel and zero-pads the channels, half before and half after
    the old ones (option A of the paper). Parameters are named as in public CIFAR checkpoints:
    ``conv1``, ``layer1.0.conv1``, ``linear``.

    Args:
        blocks: number of blocks of every stage, each at least 1.
        widths: output channels of every stage, each at least 1 and none smaller than the one
            before; as many as ``blocks``.
        num_classes: number of logits, at least 1.
        in_channels: channels of the image, at least 1.

    Raises:
        ValueError: if ``blocks`` and ``widths`` are empty, differ in length, hold a number below 1, or
            ``widths`` decrease.

    References:
        K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2016,
        section 4.2.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        stages = list(zip(blocks, widths, strict=False))
        if not stages or len(blocks) != len(widths) or min(*blocks, *widths) < 1:
            raise ValueError(
                "`blocks` and `widths` must hold one number of at least 1 for every stage; found "
                f"{blocks!r} and {widths!r}. Write for example [9, 9, 9] and [16, 32, 64]."
            )
        if list(widths) != sorted(widths):
            raise ValueError(
                f"`widths` is {widths!r}; a shortcut can add channels but not remove them, so no "
                "stage may be narrower than the one before. Write for example [16, 32, 64]."
            )
        self.stages = len(stages)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        for place, (count, width) in enumerate(stages, start=1):
            strides = [1 if place == 1 else 2] + [1] * (count - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(_Block(channels, width, stride))
                channels = width
            self.add_module(f"layer{place}", layer)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            images: float, shape (B, in_channels, H, W), with H and W at least 1.

        Returns:
            Logits, shape (B, num_classes).
        """
        maps = functional.relu(self.bn1(self.conv1(images)))
        for place in range(1, self.stages + 1):
            maps = self.get_submodule(f"layer{place}")(maps)
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        new = channels - in_channels
        self.padding = (new // 2, new - new // 2)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(maps)))
        return functional.relu(self.bn2(self.conv2(inner)) + self._shortcut(maps))

    def _shortcut(self, maps: Tensor) -> Tensor:
        if self.stride == 1 and self.padding == (0, 0):
            return maps
        return functional.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


def resnet20(num_classes: int = 10) -> ResNet:
    """ResNet-20 for 32x32 images: three blocks a stage, 0.27 million parameters."""
    return ResNet([3, 3, 3], num_classes=num_classes)


def resnet32(num_classes: int = 10) -> ResNet:
    """ResNet-32 for 32x32 images: five blocks a stage, 0.46 million parameters."""
    return ResNet([5, 5, 5], num_classes=num_classes)


def resnet44(num_classes: int = 10) -> ResNet:
    """ResNet-44 for 32x32 images: seven blocks a stage, 0.66 million parameters."""
    return ResNet([7, 7, 7], num_classes=num_classes)


def resnet56(num_classes: int = 10) -> ResNet:
    """ResNet-56 for 32x32 images: nine blocks a stage, 0.85 million parameters."""
    return ResNet([9, 9, 9], num_classes=num_classes)
