"""The weights of convolutions and linear layers, by the channels on either side."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def group_count(module: nn.Module) -> int:
    """The number of groups of a convolution; 1 for a linear layer."""
    return module.groups if isinstance(module, _ConvNd) else 1


def weight_by_input(module: nn.Module, scale: Tensor | None = None) -> Tensor:
    """What reads every input.

    Args:
        module: a convolution or a linear layer with I inputs, O outputs and G groups.
        scale: multiplies the outputs, (O,), on any device; None: 1.

    Returns:
        (I, O / G, kernel).
    """
    weight, groups = module.get_parameter("weight").detach(), group_count(module)
    if not isinstance(module, _ConvTransposeNd):
        weight = _sides_changed(weight, groups)
    if scale is None:
        return weight
    shares = scale.to(weight.device).view(groups, 1, -1).expand(-1, len(weight) // groups, -1)
    return weight * shares.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def weight_by_output(module: nn.Module) -> Tensor:
    """What makes every output: (O, I / G, kernel)."""
    weight = module.get_parameter("weight").detach()
    return _sides_changed(weight, module.groups) if isinstance(module, _ConvTransposeNd) else weight


def _sides_changed(weight: Tensor, groups: int) -> Tensor:
    by_group = weight.reshape(groups, len(weight) // groups, *weight.shape[1:]).transpose(1, 2)
    return by_group.flatten(0, 1)


def same_group(module: nn.Module, inputs: int) -> Tensor:
    """Whether two inputs are read by the same group: bool, (inputs, inputs)."""
    groups = torch.arange(inputs) // (inputs // group_count(module))
    return groups[:, None] == groups
