"""What the layers do on validation batches, gathered by forward hooks as sums."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from torch.utils.hooks import RemovableHandle

from acsp_lightning.functional import ClassMoments, class_moments, merge_moments
from acsp_lightning.structure.groups import ChannelGroup, input_spread
from acsp_lightning.structure.layers import channel_dim

# By number of spatial axes, from 1.
POOLS: tuple[Callable[..., Tensor], ...] = (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
)


@dataclass(frozen=True, slots=True)
class Activations:
    """The statistics of one capture.

    Attributes:
        moments: class moments of the own output of every layer that makes channels, by layer name.
        input_moments: mean of x x^T over samples and positions, float64 (D, D), of the D input
            channels of every layer that consumes channels, by layer name.
        samples: number of samples seen.
    """

    moments: Mapping[str, ClassMoments]
    input_moments: Mapping[str, Tensor]
    samples: int


class ActivationCapture:
    """Forward hooks on the layers of some groups, while they are attached.

    A layer's own output is read, before normalisation and activation: the separation of two classes
    is unchanged by the affine map of a BatchNorm, and what a ReLU cuts off counts.

    Usage: :meth:`attach`; before each forward pass :meth:`expect` its labels, after it :meth:`pause`;
    then :meth:`detach` and :meth:`finish`.

    Args:
        model: the network; held only while attached, so that layers may be exchanged in between.
        groups: groups of channels to look at.
        grid: pool every spatial axis to at most this many positions; None: keep every pixel.
    """

    def __init__(self, model: nn.Module, groups: Iterable[ChannelGroup], grid: int | None) -> None:
        self.groups = tuple(groups)
        self._model = model
        self._grid = grid
        self._producers = {side.layer for group in self.groups for side in group.producers}
        self._spreads = {side.layer: input_spread(side) for g in self.groups for side in g.consumers}
        self._labels: Tensor | None = None
        self._moments: dict[str, ClassMoments] = {}
        self._products: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._samples = 0
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Install the hooks."""
        for layer in self._producers:
            module = self._model.get_submodule(layer)
            self._handles.append(module.register_forward_hook(self._output_hook(layer)))
        for layer, spread in self._spreads.items():
            module = self._model.get_submodule(layer)
            hook = self._input_hook(layer, spread)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks; harmless when there are none."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.pause()

    def expect(self, labels: Tensor) -> None:
        """Say to which classes the samples of the next forward pass belong: int64, shape (B,)."""
        self._labels = labels
        self._samples += len(labels)

    def pause(self) -> None:
        """Pass over the forward passes that follow, until labels are expected again."""
        self._labels = None

    def finish(self) -> Activations:
        """The statistics of all samples seen.

        Raises:
            ValueError: if a layer gave NaN or infinite activations, or none at all.
        """
        silent = sorted((self._producers | set(self._spreads)) - set(self._rows) - set(self._moments))
        if silent:
            raise ValueError(
                f"Layer {silent[0]!r} was never called on the validation batches, although forward "
                "calls it. Pruning reads the activations of validation_step: let it run the network."
            )
        for layer, moments in self._moments.items():
            if not bool(moments.m2.isfinite().all()):
                raise ValueError(
                    f"Layer {layer!r} gave NaN or infinite activations on the validation batches. "
                    "Pruning needs finite ones: look at the learning rate, or prune earlier."
                )
        products = {layer: total / self._rows[layer] for layer, total in self._products.items()}
        for layer, product in products.items():
            if not bool(product.isfinite().all()):
                raise ValueError(f"Layer {layer!r} was given NaN or infinite inputs in validation.")
        return Activations(dict(self._moments), products, self._samples)

    def _output_hook(self, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, _arguments: object, output: Tensor) -> None:
            if self._labels is None:
                return
            if output.shape[0] != len(self._labels):
                raise ValueError(
                    f"Layer {layer!r} gave {output.shape[0]} rows for a batch of "
                    f"{len(self._labels)} labels. Pruning needs one row of activations per label; "
                    "exclude the layer, or pass read_batch= to give the labels of the rows."
                )
            with torch.autocast(output.device.type, enabled=False):
                values = _pooled(output.detach(), channel_dim(module), self._grid)
                self._moments[layer] = self._merged(layer, class_moments(values, self._labels))

        return hook

    def _merged(self, layer: str, moments: ClassMoments) -> ClassMoments:
        known = self._moments.get(layer)
        if known is None:
            return moments
        if known.num_positions != moments.num_positions:
            raise ValueError(
                f"Layer {layer!r} gave maps of {known.num_positions} and of {moments.num_positions} "
                "positions. Separation compares position with position: validate on inputs of one "
                "size, or set a smaller selection.grid."
            )
        return merge_moments(known, moments)

    def _input_hook(self, layer: str, spread: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._labels is None:
                return
            inputs = (args[0] if args else kwargs["input"]).detach()
            with torch.autocast(inputs.device.type, enabled=False):
                channels = inputs.movedim(channel_dim(module), 0)
                # After a flatten a channel has several features; they are its positions. In double,
                # because TF32 products are too coarse for a nearly singular least-squares problem.
                rows = channels.reshape(len(channels) // spread, -1).double()
                product = rows @ rows.T
            self._products[layer] = self._products.get(layer, 0) + product
            self._rows[layer] = self._rows.get(layer, 0) + rows.shape[1]

        return hook


def _pooled(output: Tensor, dim: int, grid: int | None) -> Tensor:
    """Activations as (B, N, P), each spatial axis averaged to at most ``grid`` positions."""
    # Half precision overflows in the sums of a pool.
    values = (output if output.dtype == torch.float64 else output.float()).movedim(dim, 1)
    spatial = values.shape[2:]
    if grid is not None and any(size > grid for size in spatial):
        values = POOLS[len(spatial) - 1](values, [min(axis, grid) for axis in spatial])
    return values.flatten(2) if spatial else values.unsqueeze(2)
