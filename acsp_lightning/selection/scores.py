"""Scores of the channels of a group, from a capture on the uncut network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import (
    SelectionConfig,
    compare_channels,
    mean_separability,
)
from acsp_lightning.functional.precision import alike, in_blocks, wide
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.weights import weight_by_input, weight_by_output


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the distances between channels were computed from.

    Attributes:
        classes: number of classes with two samples or more.
        unseen: number of classes up to the largest index with fewer than two samples, which are left
            out.
        class_pairs: number of class pairs compared.
        sampling_error: sampling error of the distances in the worst layer, as in
            :class:`acsp_lightning.functional.Separation`; 0 if all pairs were compared.
    """

    classes: int
    unseen: int
    class_pairs: int
    sampling_error: float


@dataclass(frozen=True, slots=True)
class ChannelScores:
    """Scores of the N channels of one group.

    Attributes:
        distances: distances between the channels' separability vectors, (N, N), over the outputs of all
            producers of the group, and over all positions of a channel in one of them, in order.
        contributions: (N,), mean 1 (all ones if all are zero): root mean square of the channel where it
            is read, times the norm of the weights that read it.
        magnitudes: (N,), L1 norm of the filters that produce the channel.
        separability: (N,), mean JM distance over classes and positions, in [0, 2]; None if the
            configuration does not use it.
        comparison: what the distances were computed from.
    """

    distances: Tensor
    contributions: Tensor
    magnitudes: Tensor
    separability: Tensor | None
    comparison: Comparison


def score_channels(
    model: nn.Module,
    group: ChannelGroup,
    activations: Activations,
    config: SelectionConfig = SelectionConfig(),  # noqa: B008 - frozen, hence safe to share
) -> ChannelScores:
    """Score the channels of one group from a capture on the uncut ``model``.

    Raises:
        ValueError: if classes are missing or have too few samples; the message names the layer.
    """
    sampling_errors: list[float] = []
    squares: Tensor | None = None
    separability: list[Tensor] = []
    magnitudes: list[Tensor] = []
    for side in group.producers:
        moments = activations.moments(side.layer)
        places = _places(side).to(moments.mean.device)
        try:
            found = compare_channels(moments, config.class_pairs, config.seed)
            if config.criterion == "mean_jm":
                separability.append(mean_separability(moments)[places].mean(0))
        except ValueError as error:
            raise ValueError(f"Layer {side.layer!r}: {error}") from error
        sampling_errors.append(found.sampling_error)
        # One after another, so that either side of the diagonal is rounded alike.
        for rows in places:
            square = found.distances[rows[:, None], rows].square_()
            squares = square if squares is None else squares.add_(square)
        magnitudes.append(_filter_norms(model, side).to(places.device)[places].sum(0))
    contributions = torch.stack(
        [_contributions(model, side, group.width, activations) for side in group.consumers]
    )
    total = contributions.square().sum(0).sqrt()
    mean = total.mean()
    assert squares is not None
    return ChannelScores(
        distances=squares.sqrt_(),
        contributions=total / mean if mean > 0 else torch.ones_like(total),
        magnitudes=torch.stack(magnitudes).sum(0),
        separability=torch.stack(separability).mean(0) if separability else None,
        comparison=Comparison(
            classes=found.classes,
            unseen=moments.num_classes - found.classes,
            class_pairs=found.class_pairs,
            sampling_error=max(sampling_errors),
        ),
    )


def _filter_norms(model: nn.Module, side: LayerSide) -> Tensor:
    weight = weight_by_output(model.get_submodule(side.layer))
    return torch.cat([wide(part).abs().flatten(1).sum(1) for part in in_blocks(weight)])


def _places(side: LayerSide) -> Tensor:
    """Positions of every channel, in order: int64, (positions per channel, N)."""
    order = torch.tensor(side.channels).argsort(stable=True)
    width = 1 + max(side.channels)
    return torch.tensor(side.positions)[order].view(width, -1).T


def read_channels(side: LayerSide) -> tuple[Tensor, Tensor]:
    """Indices of a group's channels in a consumer's input, and in the group."""
    positions = torch.tensor(side.positions)[:: side.spread] // side.spread
    return positions, torch.tensor(side.channels)[:: side.spread]


def _contributions(model: nn.Module, side: LayerSide, width: int, activations: Activations) -> Tensor:
    """What each channel of a group contributes through one consumer, (N,)."""
    energy = activations.inputs[side.layer].power
    weight = weight_by_input(model.get_submodule(side.layer))
    norms = torch.cat([alike(part, energy).square().flatten(1).sum(1) for part in in_blocks(weight)])
    norms = norms.view(len(energy), -1).sum(1)
    positions, channels = read_channels(side)
    power = (energy * norms)[positions.to(energy.device)]
    return (
        torch.zeros(width, dtype=power.dtype, device=power.device)
        .index_add_(0, channels.to(power.device), power)
        .sqrt()
    )
