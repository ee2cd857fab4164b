import pytest
import torch
from torch import nn

from acsp_lightning.zoo import DenseNet, densenet40


def test_depth_and_parameters_are_the_published_ones() -> None:
    network = densenet40()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 40
    # 1.0 million in table 2 of the paper.
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 1.0
    assert densenet40(num_classes=7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_every_layer_reads_all_before_it() -> None:
    blocks = DenseNet([2, 3], growth=5, stem=4).blocks
    widths = {name: m.in_channels for name, m in blocks.named_modules() if isinstance(m, nn.Conv2d)}
    assert widths == {
        "block1.layer1.conv": 4,
        "block1.layer2.conv": 9,
        "transition1.conv": 14,
        "block2.layer1.conv": 14,
        "block2.layer2.conv": 19,
        "block2.layer3.conv": 24,
    }
    maps = torch.rand(1, 4, 6, 6)
    assert torch.equal(blocks.block1(maps)[:, :4], maps)
    assert blocks(maps).shape == (1, 29, 3, 3)


@pytest.mark.parametrize("layers", [[], [3, 0]])
def test_empty_blocks_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one block"):
        DenseNet(layers)
