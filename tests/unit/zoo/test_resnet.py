from pathlib import Path

import pytest
import torch
from torch import nn

from acsp_lightning.zoo import ResNet, load_weights, resnet20, resnet32, resnet44, resnet56

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.parametrize(
    ("build", "depth", "millions"),
    # Table 6 of the paper; depth counts convolutions on the main path and the linear layer.
    [(resnet20, 20, 0.27), (resnet32, 32, 0.46), (resnet44, 44, 0.66), (resnet56, 56, 0.85)],
)
def test_depth_and_parameters_are_the_published_ones(build, depth: int, millions: float) -> None:
    network = build()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    assert build(num_classes=7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("depth", [20, 56])
def test_circulating_checkpoints_load(depth: int) -> None:
    path = SHARED / f"cifar10_resnet{depth}.pt"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    load_weights({20: resnet20, 56: resnet56}[depth](), path)  # strictly: every name, every shape


def test_shortcuts_skip_pixels_and_pad_channels() -> None:
    network = ResNet([1, 1], [2, 4])
    block = network.layer2[0]
    with torch.no_grad():  # nothing but the shortcut is left
        block.bn2.weight.zero_()
    maps = torch.rand(1, 2, 4, 4)
    found = block(maps)
    assert torch.equal(found[:, 1:3], maps[:, :, ::2, ::2])
    assert not found[:, [0, 3]].any()


def test_stages_halve_the_image() -> None:
    network = ResNet([1, 1, 1], [2, 3, 8])
    shapes = []
    for place in (1, 2, 3):
        network.get_submodule(f"layer{place}").register_forward_hook(
            lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:]))
        )
    network(torch.randn(2, 3, 9, 9))
    assert shapes == [(2, 9, 9), (3, 5, 5), (8, 3, 3)]


@pytest.mark.parametrize(
    ("blocks", "widths", "match"),
    [
        ([], [], "one number of at least 1 for every stage"),
        ([1, 1], [4], "one number of at least 1 for every stage"),
        ([1, 0], [4, 8], "one number of at least 1 for every stage"),
        ([1, 1], [8, 4], "no stage may be narrower"),
    ],
)
def test_stages_that_make_no_network_are_refused(blocks, widths, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ResNet(blocks, widths)
