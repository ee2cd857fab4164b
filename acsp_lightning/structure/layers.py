"""What a layer looks like from its channels: the tensors and the attributes each side of it owns."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

Side = Literal["out", "in"]


@dataclass(frozen=True, slots=True)
class SideLayout:
    """Where one side of a layer keeps its channels.

    Attributes:
        tensors: (parameter or buffer name, dimension) of every tensor that has one entry per channel.
            A name may be absent from a given layer (``bias=False``); it is skipped then.
        sizes: names of the integer attributes that count the channels of this side.
    """

    tensors: tuple[tuple[str, int], ...]
    sizes: tuple[str, ...]


_CONV_OUT = SideLayout((("weight", 0), ("bias", 0)), ("out_channels",))
_CONV_IN = SideLayout((("weight", 1),), ("in_channels",))
_TRANSPOSED_OUT = SideLayout((("weight", 1), ("bias", 0)), ("out_channels",))
_TRANSPOSED_IN = SideLayout((("weight", 0),), ("in_channels",))
# A depthwise filter belongs to one channel, so both sides shrink together, and with them the groups.
_DEPTHWISE = SideLayout((("weight", 0), ("bias", 0)), ("in_channels", "out_channels", "groups"))
_LINEAR_OUT = SideLayout((("weight", 0), ("bias", 0)), ("out_features",))
_LINEAR_IN = SideLayout((("weight", 1),), ("in_features",))
_NORM = SideLayout(
    (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0)), ("num_features",)
)
_GROUP_NORM = SideLayout((("weight", 0), ("bias", 0)), ("num_channels", "num_groups"))
_PRELU = SideLayout((("weight", 0),), ("num_parameters",))


def is_depthwise(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution with one filter per channel (and more than one channel)."""
    return (
        isinstance(module, _ConvNd)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def has_one_slope(module: nn.Module) -> bool:
    """Whether ``module`` is a PReLU with one parameter for all channels, which no cut concerns."""
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def is_producer(module: nn.Module) -> bool:
    """Whether the output channels of ``module`` are made by filters of its own."""
    return isinstance(module, _ConvNd | nn.Linear)


def is_consumer(module: nn.Module) -> bool:
    """Whether ``module`` mixes its input channels by one weight each, so that it can lose some."""
    return isinstance(module, _ConvNd | nn.Linear) and not is_depthwise(module)


def side_layout(module: nn.Module, side: Side) -> SideLayout:
    """The tensors and sizes that ``side`` of ``module`` owns.

    Layers that pass their channels through (normalisation, depthwise, PReLU) have one layout for
    both sides.

    Raises:
        TypeError: if ``module`` is of a kind that cannot be cut; :func:`refusal` says why.
    """
    reason = refusal(module)
    if reason is not None:
        raise TypeError(reason)
    if is_depthwise(module):
        return _DEPTHWISE
    if isinstance(module, _ConvTransposeNd):
        return _TRANSPOSED_OUT if side == "out" else _TRANSPOSED_IN
    if isinstance(module, _ConvNd):
        return _CONV_OUT if side == "out" else _CONV_IN
    if isinstance(module, nn.Linear):
        return _LINEAR_OUT if side == "out" else _LINEAR_IN
    if isinstance(module, nn.GroupNorm):
        return _GROUP_NORM
    if isinstance(module, nn.PReLU):
        return _PRELU
    return _NORM


def side_width(module: nn.Module, side: Side) -> int:
    """Number of channels (features of a linear layer) that ``side`` of ``module`` has now."""
    return int(getattr(module, side_layout(module, side).sizes[0]))


def channel_dim(module: nn.Module) -> int:
    """Dimension of the channels in the inputs and outputs of ``module``: -1 for linear, else 1."""
    return -1 if isinstance(module, nn.Linear) else 1


def refusal(module: nn.Module) -> str | None:
    """Why the channels of ``module`` cannot be cut; None if they can.

    The answer depends on the layer alone. Whether a cut is right where the layer stands in the
    network is found out by :mod:`acsp_lightning.structure.fidelity`.
    """
    computed = isinstance(module, _ConvNd | nn.Linear) and "weight" not in module._parameters
    if parametrize.is_parametrized(module) or computed:
        return "its weight is computed from other parameters (weight norm, a mask, a parametrization)"
    if any(isinstance(tensor, nn.UninitializedParameter) for tensor in module.parameters(False)):
        return "its parameters are not initialised yet (a lazy layer)"
    if isinstance(module, _ConvNd):
        if module.groups > 1 and not is_depthwise(module):
            return f"its {module.groups} groups would become unequal (a grouped convolution)"
    elif isinstance(module, _InstanceNorm):
        if module.track_running_stats:
            return "it is an InstanceNorm with running statistics"
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups != module.num_channels:
            return (
                f"it is a GroupNorm that normalises {module.num_channels} channels in "
                f"{module.num_groups} groups, which a cut would no longer divide alike"
            )
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "it is a recurrent layer"
    elif isinstance(module, nn.MultiheadAttention):
        return "it is an attention layer, whose heads share their channels"
    elif not isinstance(module, nn.Linear | _BatchNorm | nn.PReLU):
        return f"channels of a {type(module).__name__} cannot be cut"
    return None


def slice_tensor(tensor: torch.Tensor, dim: int, kept: torch.Tensor) -> torch.Tensor:
    """The ``kept`` entries of ``tensor`` along ``dim``: a copy in the memory format of the original.

    Args:
        tensor: any shape.
        dim: dimension to select from.
        kept: int64 indices, shape (K,), on any device.
    """
    picked = tensor.detach().index_select(dim, kept.to(tensor.device))
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.ndim != ndim:
            continue
        # Strides, since a 1 x 1 kernel calls itself contiguous in both formats.
        same = torch.empty(tensor.shape, memory_format=layout, device="meta")
        if tensor.stride() == same.stride():
            return torch.empty_like(picked, memory_format=layout).copy_(picked)
    return picked
