import torch
import torchvision

from acsp_lightning.zoo import mobilenet_v2


def test_only_strides_differ_from_torchvision() -> None:
    small, large = mobilenet_v2(), torchvision.models.mobilenet_v2(num_classes=10)
    shapes = {name: value.shape for name, value in large.state_dict().items()}
    assert {name: value.shape for name, value in small.state_dict().items()} == shapes
    strides = [
        (name, module.stride)
        for name, module in small.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.stride != (1, 1)
    ]
    assert strides == [(f"features.{n}.conv.1.0", (2, 2)) for n in (4, 7, 14)]


def test_last_maps_of_a_small_image_are_4x4() -> None:
    network = mobilenet_v2(num_classes=7).eval()
    assert network.features(torch.randn(1, 3, 32, 32)).shape == (1, 1280, 4, 4)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
