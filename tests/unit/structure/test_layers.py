import copy

import pytest
import torch
from torch import nn

from acsp_lightning.structure.layers import (
    is_consumer,
    is_producer,
    refusal,
    side_layout,
    side_width,
    slice_tensor,
)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (6, 5, 1, 1), (6, 1, 3, 3), (1, 5, 3, 3)])
@pytest.mark.parametrize("dim", [0, 1])
def test_slices_keep_values_and_format(layout, shape, dim):
    tensor = torch.randn(shape).to(memory_format=layout)
    kept = torch.arange(0, shape[dim], 2)
    part = slice_tensor(tensor, dim, kept)
    assert torch.equal(part, tensor[kept] if dim == 0 else tensor[:, kept])
    assert part.data_ptr() != tensor.data_ptr()
    assert part.stride() == torch.empty(part.shape, memory_format=layout).stride()


LAYERS = {
    "conv": (nn.Conv2d(6, 8, 3), {"out": ("out_channels",), "in": ("in_channels",)}),
    "transposed": (nn.ConvTranspose2d(6, 8, 3), {"out": ("out_channels",), "in": ("in_channels",)}),
    "linear": (nn.Linear(6, 8), {"out": ("out_features",), "in": ("in_features",)}),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), {"out": ("in_channels", "out_channels", "groups")}),
    "batch norm": (nn.BatchNorm2d(6), {"out": ("num_features",)}),
    "group norm": (nn.GroupNorm(6, 6), {"out": ("num_channels", "num_groups")}),
    "prelu": (nn.PReLU(6), {"out": ("num_parameters",)}),
}


@pytest.mark.parametrize(("name", "side"), [(n, s) for n, (_, sides) in LAYERS.items() for s in sides])
def test_a_layer_made_smaller_by_its_layout_is_one_that_was_built_so(name: str, side: str) -> None:
    layer, sides = LAYERS[name]
    layout, width = side_layout(layer, side), side_width(layer, side)
    assert layout.sizes == sides[side]
    sizes = {n: getattr(layer, n) for sizes in sides.values() for n in sizes}
    sizes.update(dict.fromkeys(layout.sizes, width - 2))
    kernel = {"kernel_size": 3} if layer.weight.ndim == 4 else {}
    built = type(layer)(**sizes, **kernel)
    kept = torch.tensor([p for p in range(width) if p not in (1, 4)])
    found = copy.deepcopy(layer.state_dict())
    for tensor, dim in layout.tensors:
        if tensor in found:
            found[tensor] = slice_tensor(found[tensor], dim, kept)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in built.state_dict().items()}


REFUSED = {
    "grouped": (nn.Conv2d(6, 6, 3, groups=3), "3 groups would become unequal"),
    "group norm": (nn.GroupNorm(2, 6), "6 channels in 2 groups"),
    "instance norm": (nn.InstanceNorm2d(6, track_running_stats=True), "running statistics"),
    "lazy": (nn.LazyConv2d(6, 3), "lazy"),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), "weight norm"),
    "recurrent": (nn.LSTM(6, 6), "recurrent"),
    "attention": (nn.MultiheadAttention(6, 2), "attention"),
    "no layer": (nn.ReLU(), "channels of a ReLU"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_cannot_be_cut_say_why(name: str) -> None:
    layer, reason = REFUSED[name]
    assert reason in (refusal(layer) or "")
    with pytest.raises(TypeError, match=reason):
        side_layout(layer, "out")


@pytest.mark.parametrize(
    ("layer", "producer", "consumer"),
    [
        (nn.Conv2d(3, 4, 1), True, True),
        (nn.Conv2d(4, 4, 1, groups=4), True, False),
        (nn.Linear(3, 4), True, True),
        (nn.BatchNorm2d(4), False, False),
        (nn.ReLU(), False, False),
    ],
)
def test_who_makes_channels_and_who_mixes_them(layer: nn.Module, producer: bool, consumer: bool) -> None:
    assert (is_producer(layer), is_consumer(layer)) == (producer, consumer)
