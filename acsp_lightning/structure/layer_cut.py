"""The cut of one layer: which of its tensors are sliced, what its attributes become."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from acsp_lightning.structure.layers import is_grouped, norm_sizes, refusal, side_layout, side_width
from acsp_lightning.structure.records import PREFIX
from acsp_lightning.structure.sides import Side, parsed


@dataclass(frozen=True, slots=True)
class LayerCut:
    """What becomes of one module when some of its sides keep some of their positions.

    Attributes:
        slices: (tensor name, dimension, kept indices, int64), in order.
        sizes: new values of attributes.
        unseen: those of the attributes that no shape of the module's tensors tells.
    """

    slices: tuple[tuple[str, int, Tensor], ...]
    sizes: Mapping[str, object]
    unseen: tuple[str, ...]


def layer_cut(module: nn.Module, kept: Mapping[Side, Sequence[int]]) -> LayerCut:
    """Work out a cut of one module; changes nothing.

    Args:
        module: the module.
        kept: positions that stay, by side.
    """
    slices: list[tuple[str, int, Tensor]] = []
    sizes: dict[str, object] = {}
    groups = _groups_after(module, kept)
    for side, positions in kept.items():
        kind, name, place = parsed(side)
        stay = torch.tensor(positions, dtype=torch.int64)
        if kind == "parameter":
            assert place is not None
            slices.append((name, place, stay))
        elif kind == "size":
            entries = sizes.get(name, getattr(module, name))
            sizes[name] = len(positions) if place is None else _replaced(entries, place, len(positions))
        else:
            layout = side_layout(module, side)
            sizes.update(dict.fromkeys(layout.sizes, len(positions)))
            for tensor, dim in layout.tensors:
                if getattr(module, tensor, None) is None:
                    continue
                if groups is not None and tensor == "weight" and dim == 1:
                    if groups != module.groups:
                        continue  # whole groups go, so that each keeps all of its channels
                    share = side_width(module, side) // groups
                    slices.append((tensor, dim, stay[stay < share]))
                else:
                    slices.append((tensor, dim, stay))
    if groups is not None:
        sizes["groups"] = groups
    if "out" in kept:
        sizes |= norm_sizes(module, len(kept["out"]))
    return LayerCut(tuple(slices), sizes, tuple(_unseen(module, sizes)))


def _unseen(module: nn.Module, sizes: Iterable[str]) -> list[str]:
    if refusal(module) is not None:
        return list(sizes)
    told = {name for side in ("out", "in") for name in side_layout(module, side).sizes}
    if isinstance(module, nn.GroupNorm):
        told.add("num_groups")
    if norm_sizes(module, 1) and module._parameters.get("weight") is None:
        told.clear()  # norms without parameters have no shapes
    if f"{PREFIX}groups" in module._buffers:  # it became depthwise in an earlier cut
        told.discard("groups")
    return [name for name in sizes if name not in told]


def _replaced(entries: object, place: int, value: int) -> object:
    assert isinstance(entries, list | tuple)
    return type(entries)([*entries[:place], value, *entries[place + 1 :]])


def _groups_after(module: nn.Module, kept: Mapping[Side, Sequence[int]]) -> int | None:
    """The groups of a convolution after a cut; None if it has none, or is depthwise."""
    if not isinstance(module, _ConvNd) or not is_grouped(module):
        return None
    share = module.in_channels // module.groups
    by_group = torch.tensor(kept.get("in", range(module.in_channels))) // share
    counts = by_group.bincount(minlength=module.groups)
    whole = bool(((counts == 0) | (counts == share)).all())
    return int((counts > 0).sum()) if whole else module.groups


def slice_tensor(tensor: torch.Tensor, dim: int, kept: torch.Tensor) -> torch.Tensor:
    """The ``kept`` entries of ``tensor`` along ``dim``: a copy in the memory format of the original.

    Args:
        tensor: any shape.
        dim: dimension to select from.
        kept: int64 indices, shape (K,), on any device.
    """
    picked = tensor.detach().index_select(dim, kept.to(tensor.device))
    layout = channels_last_format(tensor)
    return picked if layout is None else torch.empty_like(picked, memory_format=layout).copy_(picked)


def channels_last_format(tensor: torch.Tensor) -> torch.memory_format | None:
    """The format of a tensor of maps, or of kernels, whose channels lie last; None if they do not.

    By strides, since a 1 x 1 kernel calls itself contiguous in both formats.
    """
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if layout is None:
        return None
    _, channels, *space = tensor.shape
    *inner, outer = accumulate(reversed(space), mul, initial=channels)
    return layout if tensor.stride() == (outer, 1, *reversed(inner)) else None
