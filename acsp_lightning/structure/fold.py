"""Recovery without training: consumers take over what the removed channels gave them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from acsp_lightning.functional import fold_input, reconstruction_map
from acsp_lightning.structure.groups import ChannelGroup, features_per_channel
from acsp_lightning.structure.layers import side_layout, slice_tensor
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.surgery import SlicedParameter


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
    spreads = {side.layer: features_per_channel(side) for group in groups for side in group.consumers}
    by_name = {entry.name: entry for entry in sliced}
    for cut in plan:
        if cut.side != "in":
            continue
        weight = by_name[f"{cut.layer}.weight"]
        ((_, dim),) = side_layout(model.get_submodule(cut.layer), "in").tensors
        spread = spreads[cut.layer]
        channels = torch.tensor(cut.kept[::spread], dtype=torch.int64) // spread
        mapping = reconstruction_map(input_moments[cut.layer], channels)
        folded = fold_input(weight.old, mapping, dim=dim, spread=spread)
        for other, kept in weight.cuts:
            if other != dim:
                folded = slice_tensor(folded, other, kept)
        with torch.no_grad():
            weight.parameter.copy_(folded)
