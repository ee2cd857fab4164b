import pytest
import torch
from torch import nn

from acsp_lightning.structure.weights import same_group, weight_by_input, weight_by_output

LAYERS = {
    "linear": nn.Linear(6, 4),
    "conv": nn.Conv2d(6, 4, 3),
    "groups": nn.Conv2d(6, 4, 3, groups=2),
    "transposed": nn.ConvTranspose2d(6, 4, 3),
    "transposed groups": nn.ConvTranspose2d(6, 4, 3, groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_weights_of_one_channel_are_what_a_gradient_says(name: str) -> None:
    """Which weights an input or an output has to do with, asked of autograd."""
    layer = LAYERS[name].double()
    shape = (1, 6) if name == "linear" else (1, 6, 5, 5)
    for channel in range(6):
        x = torch.zeros(shape, dtype=torch.float64)
        x[:, channel] = 1
        layer.zero_grad()
        layer(x).sum().backward()
        touched = layer.weight.detach()[layer.weight.grad != 0]
        assert torch.equal(
            touched.sort().values, weight_by_input(layer)[channel].flatten().sort().values
        )
    for channel in range(4):
        layer.zero_grad()
        layer(torch.ones(shape, dtype=torch.float64))[:, channel].sum().backward()
        touched = layer.weight.detach()[layer.weight.grad != 0]
        assert torch.equal(
            touched.sort().values, weight_by_output(layer)[channel].flatten().sort().values
        )


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_scaled_as_they_are_made(name: str) -> None:
    layer, scale = LAYERS[name].double(), torch.rand(4, dtype=torch.float64)
    x = torch.rand((2, 6) if name == "linear" else (2, 6, 5, 5), dtype=torch.float64)
    scaled = weight_by_input(layer, scale)
    plain = weight_by_input(layer)
    groups = getattr(layer, "groups", 1)
    ratio = (scaled / plain).flatten(2).mean(2) if name != "linear" else scaled / plain
    share = 6 // groups
    for group in range(groups):
        expected = scale.view(groups, -1)[group].expand(share, -1)
        assert torch.allclose(ratio[group * share : (group + 1) * share], expected)
    assert layer(x).isfinite().all()


def test_inputs_of_one_group() -> None:
    assert same_group(LAYERS["groups"], 4).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, True],
        [False, False, True, True],
    ]
    assert same_group(LAYERS["linear"], 3).all()
