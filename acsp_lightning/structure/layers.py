"""What a layer looks like from its channels: the tensors and the attributes each side of it owns."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from acsp_lightning.structure.records import is_record
from acsp_lightning.structure.sides import Side, parsed


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
_GROUP_NORM = SideLayout((("weight", 0), ("bias", 0)), ("num_channels",))
_LAYER_NORM = SideLayout((("weight", 0), ("bias", 0)), ("normalized_shape",))
_PRELU = SideLayout((("weight", 0),), ("num_parameters",))
STANDARD = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def is_depthwise(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution with one filter per channel (and more than one channel)."""
    return (
        isinstance(module, _ConvNd)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def is_grouped(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution in groups, but not a depthwise one."""
    return isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module)


def loses_groups(module: nn.Module) -> bool:
    """Whether a convolution in groups is cut by whole groups, else every group loses the same share.

    What leaves more units to choose from: groups, or channels of a group.
    """
    return (
        isinstance(module, _ConvNd)
        and is_grouped(module)
        and (module.groups >= module.in_channels // module.groups)
    )


def normalises_all(module: nn.Module) -> bool:
    """Whether ``module`` is a norm of torch whose statistics are those of all channels together."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == 1
    return isinstance(module, nn.LayerNorm | nn.RMSNorm)


def norm_sizes(module: nn.Module, width: int) -> dict[str, object]:
    """What the attributes of a LayerNorm, an RMSNorm or a GroupNorm of ``width`` channels have to be."""
    if isinstance(module, nn.GroupNorm):
        groups = width * module.num_groups // module.num_channels
        return {"num_channels": width, "num_groups": max(groups, 1)}
    return {"normalized_shape": (width,)} if normalises_all(module) else {}


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
    """The tensors and sizes that ``side`` ("out" or "in") of ``module`` owns.

    Layers that pass their channels through (normalisation, depthwise, PReLU) have one layout for
    both sides. Subclasses may have tensors of their own with a value for each channel.

    Raises:
        TypeError: if ``module`` is of a kind that cannot be cut; :func:`refusal` says why.
    """
    reason = refusal(module)
    if reason is not None:
        raise TypeError(reason)
    layout = _layout(module, side)
    width, other = (_counted(module, _layout(module, s).sizes[0]) for s in (side, "out"))
    if side == "in" and width == other:
        return layout  # what has as many values belongs to the filters
    own = tuple(
        (name, tensor.shape.index(width))
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if name not in STANDARD and tensor is not None and width > 1 and not is_record(name)
        if tensor.numel() == width and width in tensor.shape
    )
    return SideLayout(layout.tensors + own, layout.sizes)


def _layout(module: nn.Module, side: Side) -> SideLayout:
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
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return _LAYER_NORM
    if isinstance(module, nn.PReLU):
        return _PRELU
    return _NORM


def _counted(module: nn.Module, attribute: str) -> int:
    held = getattr(module, attribute)
    return int(held[0] if isinstance(held, tuple) else held)


def side_width(module: nn.Module, side: Side) -> int:
    """Number of positions that ``side`` of ``module`` has now: channels, features or entries."""
    kind, name, place = parsed(side)
    if kind == "parameter":
        return int(getattr(module, name).shape[place])
    if kind == "size":
        held = getattr(module, name)
        return int(held if place is None else held[place])
    return _counted(module, side_layout(module, side).sizes[0])


def channel_dim(module: nn.Module) -> int:
    """Dimension of the channels in the inputs and outputs of a layer: -1 or 1.

    A LayerNorm has them last, but there are subclasses that permute: one is asked.
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return 1 if has_own_forward(module) and _takes_maps(module) else -1
    return -1 if isinstance(module, nn.Linear) else 1


def has_own_forward(module: nn.Module) -> bool:
    """Whether a layer computes something else than the layer of torch that it is derived from."""
    return not type(module).forward.__module__.startswith("torch.nn.")


def _takes_maps(norm: nn.Module) -> bool:
    """Whether a norm takes a tensor that has its channels in dimension 1 and one position beside."""
    width = _counted(norm, "normalized_shape")
    like = next(norm.parameters(False), torch.empty(0))
    try:
        with torch.no_grad():
            norm.forward(like.new_zeros(1, width, 1, 1))
    except Exception:
        return False
    return width > 1


def refusal(module: nn.Module) -> str | None:
    """Why the channels of ``module`` cannot be cut; None if they can.

    The answer depends on the layer alone. Whether a cut is right where the layer stands in the
    network is found out by :mod:`acsp_lightning.structure.verification`.
    """
    computed = isinstance(module, _ConvNd | nn.Linear) and "weight" not in module._parameters
    if parametrize.is_parametrized(module) or computed:
        return "its weight is computed from other parameters (weight norm, a mask, a parametrization)"
    if any(isinstance(tensor, nn.UninitializedParameter) for tensor in module.parameters(False)):
        return "its parameters are not initialised yet (a lazy layer)"
    if isinstance(module, _InstanceNorm):
        if module.track_running_stats:
            return "it is an InstanceNorm with running statistics"
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        if len(module.normalized_shape) > 1:
            return f"it is a {type(module).__name__} over several dimensions"
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "it is a recurrent layer"
    elif isinstance(module, nn.MultiheadAttention):
        return "it is an attention layer, whose heads share their channels"
    elif not isinstance(module, _ConvNd | nn.Linear | _BatchNorm | nn.GroupNorm | nn.PReLU):
        return f"channels of a {type(module).__name__} cannot be cut"
    return None
