"""Data for the report on a group: a map of its channels, and the classes that they separate."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import ChannelSelection, ClassSeparation
from acsp_lightning.functional.class_separation import class_separation_of_layers
from acsp_lightning.progress import tracked
from acsp_lightning.selection.allocation import Allocation
from acsp_lightning.structure.groups import ChannelGroup

# A plot of more is unreadable, and its MDS would take longer than the cut.
MOST_CHANNELS = 400

# Exponentials for the class separation of one layer: all pairs of a hundred classes, and of a thousand
# some that take a hundredth of comparing the channels.
MOST_EXPONENTIALS = 2 * 10**7


@dataclass(frozen=True, slots=True)
class GroupMap:
    """Data for the report on one group of channels. All tensors are on the CPU.

    Attributes:
        channels: the S channels on the map, ascending, int64, (S,): all or, if there are many, those of
            largest weight among the kept and among the removed, in proportion; kept ones stay on the
            map if they are few.
        places: their coordinates in two dimensions, by classical MDS of the distances between their
            separability vectors, float64, (S, 2).
        stress: Kruskal's stress of the map: root of the sum of squared errors of its distances over the
            sum of squared distances; 0 if it is exact.
        classes: how well the best of all channels, and the best of the kept ones, separate the classes.
    """

    channels: Tensor
    places: Tensor
    stress: float
    classes: ClassSeparation


def map_groups(
    groups: Iterable[ChannelGroup], allocation: Allocation, activations: Activations
) -> dict[str, GroupMap]:
    """Maps of the groups that lose channels, by name, from the distances of the selection."""
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
    """Map a group of the uncut network and the selection from it.

    Args:
        group: group of N channels.
        distances: distances between their separability vectors, (N, N).
        activations: captured activations of the producers.
        selection: channels to keep.
    """
    shown = _shown(selection)
    places, stress = _map(distances.cpu()[shown][:, shown])
    return GroupMap(shown, places, stress, _classes(group, activations, selection.kept))


def _shown(selection: ChannelSelection) -> Tensor:
    if selection.width <= MOST_CHANNELS:
        return torch.arange(selection.width)
    heaviest = selection.weights.argsort(descending=True, stable=True)
    kept = torch.isin(heaviest, selection.kept)
    stay, go = heaviest[kept], heaviest[~kept]
    # All that stay where they are few; each of them stands for many that go.
    fewest = min(len(stay), MOST_CHANNELS // 2)
    share = MOST_CHANNELS * len(stay) // selection.width
    most = max(1, fewest, share, MOST_CHANNELS - len(go))
    return torch.cat([stay[:most], go[: MOST_CHANNELS - most]]).sort().values


def _map(distances: Tensor) -> tuple[Tensor, float]:
    whole = distances.square().sum()
    if len(distances) < 2 or not whole:
        return torch.zeros(len(distances), 2, dtype=torch.float64), 0.0
    # Imported here, since drawing a map that was made before does not need it.
    from sklearn.manifold import ClassicalMDS

    found = ClassicalMDS(n_components=2, metric="precomputed").fit_transform(distances.numpy())
    places = torch.from_numpy(found)
    error = (torch.cdist(places, places) - distances).square().sum()
    return places, float((error / whole).sqrt())


def _classes(group: ChannelGroup, activations: Activations, kept: Tensor) -> ClassSeparation:
    """Class separation over all producers of the channels: the best one counts."""
    layers = []
    for side in group.producers:
        # Positions of the kept channels in this layer's output.
        stay = torch.tensor(side.positions)[torch.isin(torch.tensor(side.channels), kept)]
        layers.append((activations.moments(side.layer), stay))
    largest = max(moments.num_channels * moments.num_positions for moments, _ in layers)
    most = max(1, MOST_EXPONENTIALS // largest)
    return class_separation_of_layers(layers, class_pairs=most)
