"""What people look at in a group of channels: a map of them, and the classes that they tell apart."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from sklearn.manifold import ClassicalMDS
from torch import Tensor

from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import ChannelSelection, ClassSeparation, class_separation
from acsp_lightning.progress import tracked
from acsp_lightning.selection.allocation import Allocation
from acsp_lightning.structure.groups import ChannelGroup

# A plot of more is a blot, and placing them would take longer than the cut.
MOST_CHANNELS = 400

# Exponentials for the classes that one layer tells apart: a second.
MOST_EXPONENTIALS = 10**8


@dataclass(frozen=True, slots=True)
class GroupMap:
    """One group of channels, to be looked at. All tensors are on the CPU.

    Attributes:
        channels: the S channels on the map, ascending, int64, (S,): all, or of many the heaviest of
            those that stay and of those that go, in proportion.
        places: where they lie in two dimensions, so that distances on the map are like those between
            their separability vectors (classical MDS), float64, (S, 2).
        stress: how wrong the map is, Kruskal's stress: root of the squared errors of its distances over
            the squared distances; 0 if it is right.
        classes: which classes the best channel of all, and the best one kept, tell apart.
    """

    channels: Tensor
    places: Tensor
    stress: float
    classes: ClassSeparation


def map_groups(
    groups: Iterable[ChannelGroup], allocation: Allocation, activations: Activations
) -> dict[str, GroupMap]:
    """Look at the groups that lose channels, by name, through the distances that decided."""
    cut = [group for group in groups if allocation.selections[group.name].k < group.width]
    return {
        group.name: map_group(
            group,
            allocation.scores[group.name].distances,
            activations,
            allocation.selections[group.name],
        )
        for group in tracked(cut, "Looking at channels")
    }


def map_group(
    group: ChannelGroup, distances: Tensor, activations: Activations, selection: ChannelSelection
) -> GroupMap:
    """Look at a group of the uncut network, and at what was selected of it.

    Args:
        group: N channels.
        distances: between their separability vectors, (N, N).
        activations: what was captured of the layers that make them.
        selection: what stays.
    """
    shown = _shown(selection)
    places, stress = _map(distances.cpu()[shown][:, shown])
    return GroupMap(shown, places, stress, _classes(group, activations, selection.kept))


def _shown(selection: ChannelSelection) -> Tensor:
    kept = torch.isin(torch.arange(selection.width), selection.kept)
    share = min(1.0, MOST_CHANNELS / selection.width)
    heaviest = selection.weights.argsort(descending=True, stable=True)
    parts = [heaviest[kept[heaviest]], heaviest[~kept[heaviest]]]
    return torch.cat([part[: max(1, round(share * len(part)))] for part in parts]).sort().values


def _map(distances: Tensor) -> tuple[Tensor, float]:
    whole = distances.square().sum()
    if len(distances) < 2 or not whole:
        return torch.zeros(len(distances), 2, dtype=torch.float64), 0.0
    found = ClassicalMDS(n_components=2, metric="precomputed").fit_transform(distances.numpy())
    places = torch.from_numpy(found)
    error = (torch.cdist(places, places) - distances).square().sum()
    return places, float((error / whole).sqrt())


def _classes(group: ChannelGroup, activations: Activations, kept: Tensor) -> ClassSeparation:
    """Over all layers that make the channels: the best layer counts."""
    found = []
    for side in group.producers:
        # Where in this layer's output the channels that stay are.
        stay = torch.isin(torch.tensor(side.channels), kept).nonzero().flatten()
        moments = activations.moments(side.layer)
        most = max(1, MOST_EXPONENTIALS // (moments.num_channels * moments.num_positions))
        found.append(class_separation(moments, stay, class_pairs=most))
    first, *others = found
    for other in others:
        first = replace(
            first,
            before=torch.maximum(first.before, other.before),
            after=torch.maximum(first.after, other.after),
        )
    return first
