"""MobileNet-V2 for 32x32 images."""

from torchvision.models import MobileNetV2

__all__ = ["mobilenet_v2"]

# Expansion, output channels, blocks and stride of every stage, as published, except for the second
# stage, whose stride is 2 for images of 224 pixels.
_STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def mobilenet_v2(num_classes: int = 10) -> MobileNetV2:
    """MobileNet-V2 for 32x32 images: torchvision's, with the first convolution at stride 1.

    The stride of the second stage is 1 too, so that the last maps are 4x4, as is usual for CIFAR
    (github.com/kuangliu/pytorch-cifar). Widths and names are torchvision's; 2.2 million parameters
    for ten classes.

    Args:
        num_classes: number of logits, at least 1.
    """
    network = MobileNetV2(num_classes=num_classes, inverted_residual_setting=_STAGES)
    network.features[0][0].stride = (1, 1)
    return network
