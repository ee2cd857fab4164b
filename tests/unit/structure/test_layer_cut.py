import copy

import pytest
import torch
from helpers.structures import Mixed
from torch import nn

from acsp_lightning.structure.layer_cut import channels_last_format, layer_cut, slice_tensor
from acsp_lightning.structure.layers import (
    loses_groups,
    side_width,
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


CUTS = {
    "conv": (nn.Conv2d(6, 8, 3), {"out": (0, 3, 4), "in": (1, 5)}, nn.Conv2d(2, 3, 3)),
    "transposed": (
        nn.ConvTranspose2d(6, 8, 3), {"out": (0, 3, 4), "in": (1, 5)}, nn.ConvTranspose2d(2, 3, 3)
    ),
    "linear": (nn.Linear(6, 8), {"out": (0, 3, 4), "in": (1, 5)}, nn.Linear(2, 3)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), {"out": (0, 3)}, nn.Conv2d(2, 2, 3, groups=2)),
    "whole groups": (
        nn.Conv2d(6, 12, 3, groups=3), {"in": (0, 1, 4, 5), "out": (0, 1, 2, 3, 8, 9, 10, 11)},
        nn.Conv2d(4, 8, 3, groups=2),
    ),
    "one group": (
        nn.Conv2d(6, 12, 3, groups=3), {"in": (2, 3), "out": (4, 5, 6, 7)}, nn.Conv2d(2, 4, 3)
    ),
    "shares": (
        nn.Conv2d(6, 8, 3, groups=2), {"in": (0, 2, 3, 5), "out": (1, 5)}, nn.Conv2d(4, 2, 3, groups=2)
    ),
    "transposed groups": (
        nn.ConvTranspose2d(6, 6, 3, groups=3), {"in": (0, 1, 4, 5), "out": (0, 1, 4, 5)},
        nn.ConvTranspose2d(4, 4, 3, groups=2),
    ),
    "transposed shares": (
        nn.ConvTranspose2d(6, 8, 3, groups=2), {"in": (0, 2, 3, 5), "out": (1, 5)},
        nn.ConvTranspose2d(4, 2, 3, groups=2),
    ),
    "batch norm": (nn.BatchNorm2d(6), {"out": (0, 3)}, nn.BatchNorm2d(2)),
    "group norm": (nn.GroupNorm(3, 6), {"out": (0, 1, 4, 5)}, nn.GroupNorm(2, 4)),
    "prelu": (nn.PReLU(6), {"out": (0, 3)}, nn.PReLU(2)),
    "layer norm": (nn.LayerNorm(6), {"out": (0, 3)}, nn.LayerNorm(2)),
    "rms norm": (nn.RMSNorm(6), {"out": (0, 3)}, nn.RMSNorm(2)),
    "norm of all": (nn.GroupNorm(1, 6), {"out": (0, 3)}, nn.GroupNorm(1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_a_layer_that_was_cut_is_one_that_was_built_so(name: str) -> None:
    layer, kept, built = CUTS[name]
    widths = {side: side_width(layer, side) for side in kept}
    cut = layer_cut(layer, kept)
    found = copy.deepcopy(layer.state_dict())
    for tensor, dim, stay in cut.slices:
        found[tensor] = slice_tensor(found[tensor], dim, stay)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in built.state_dict().items()}
    for attribute, value in cut.sizes.items():
        assert getattr(built, attribute) == value
    assert {side: side_width(layer, side) for side in kept} == widths
    assert cut.unseen == (("groups",) if "groups" in name or "share" in name or "one" in name else ())


def test_numbers_and_parameters_of_any_module() -> None:
    module = Mixed(5, 3)
    module.gamma = nn.Parameter(torch.rand(1, 8, 1, 1))
    assert [side_width(module, side) for side in ("=splits:0", "gamma:1")] == [5, 8]
    cut = layer_cut(module, {"=splits:0": (0, 1), "=splits:1": (0,), "gamma:1": (0, 1, 5)})
    assert cut.sizes == {"splits": [2, 1]}
    assert [(name, dim, stay.tolist()) for name, dim, stay in cut.slices] == [("gamma", 1, [0, 1, 5])]
    assert cut.unseen == ("splits",)


@pytest.mark.parametrize(("groups", "inputs", "whole"), [(2, 8, False), (4, 8, True), (8, 8, False)])
def test_whole_groups_go_where_there_are_more_of_them(groups: int, inputs: int, whole: bool) -> None:
    assert loses_groups(nn.Conv2d(inputs, 8, 1, groups=groups)) == whole


@pytest.mark.parametrize(
    "shape", [(4, 3, 5, 6), (4, 1, 3, 3), (4, 3, 1, 1), (1, 1, 1, 1), (4, 3, 2, 5, 6)]
)
def test_channels_last_is_told_by_strides(shape: tuple[int, ...]) -> None:
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    last = torch.empty(shape, memory_format=layout)
    assert channels_last_format(last) == layout
    plain = torch.empty(shape)
    assert (channels_last_format(plain) == layout) == (plain.stride() == last.stride())
    assert channels_last_format(torch.empty(3, 4)) is None
