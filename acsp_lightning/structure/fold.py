"""Recovery without training: consumers take over what the removed channels gave them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from acsp_lightning.functional import fold_input, reconstruction_map
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.layer_cut import slice_tensor
from acsp_lightning.structure.layers import side_layout
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.surgery import SlicedParameter
from acsp_lightning.structure.weights import group_count


def recover_consumers(
    model: nn.Module,
    plan: PruningPlan,
    groups: Iterable[ChannelGroup],
    sliced: Iterable[SlicedParameter],
    input_moments: Mapping[str, Tensor],
) -> None:
    """Fold the least-squares reconstruction of the removed channels into the layers that read them.

    Args:
        model: the network after the cut; the weights of consumers change in place.
        plan: the cut.
        groups: the groups that the plan was built from.
        sliced: what the cut made smaller; the old weights are read.
        input_moments: second moments of every consumer's input before the cut, (D, D), by layer.
    """
    spreads = {side.layer: side.spread for group in groups for side in group.consumers}
    by_name = {entry.name: entry for entry in sliced}
    for cut in plan:
        if cut.side != "in" or cut.layer not in spreads:
            continue
        weight = by_name[f"{cut.layer}.weight"]
        module = model.get_submodule(cut.layer)
        ((_, dim), *_) = side_layout(module, "in").tensors
        spread = spreads[cut.layer]
        channels = torch.tensor(cut.kept[::spread], dtype=torch.int64) // spread
        with torch.no_grad():
            if group_count(module) == 1:  # the outputs that go need no folding
                left = _other_sides(weight, weight.old, dim)
                found = reconstruction_map(input_moments[cut.layer], channels)
                fold_input(left, found, dim=dim, spread=spread, out=weight.parameter)
            else:
                moments = input_moments[cut.layer]
                folded = _folded(module, weight.old, moments, channels, dim, spread)
                weight.parameter.copy_(_other_sides(weight, folded, dim))


def _other_sides(weight: SlicedParameter, tensor: Tensor, dim: int) -> Tensor:
    """A tensor cut as a weight was, but for one axis."""
    for other, kept in weight.cuts:
        if other != dim:
            tensor = slice_tensor(tensor, other, kept)
    return tensor


def _folded(
    module: nn.Module, weight: Tensor, moments: Tensor, kept: Tensor, dim: int, spread: int
) -> Tensor:
    """The weight of a convolution whose groups take over from their own inputs."""
    groups = group_count(module)
    share = len(moments) // groups
    parts = []
    for place, part in enumerate(weight.chunk(groups)):
        block = moments[place * share : (place + 1) * share, place * share : (place + 1) * share]
        own = kept[kept // share == place] - place * share
        parts.append(fold_input(part, reconstruction_map(block, own), dim=dim, spread=spread))
    return torch.cat(parts)
