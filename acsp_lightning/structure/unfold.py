"""A convolution or linear layer as a matrix product: its inputs and outputs as rows."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from acsp_lightning.functional.precision import in_blocks, wide
from acsp_lightning.structure.layers import is_consumer

# Share of its size by which an output may differ from the product, for half precision's sake.
ROUNDING = 0.05


def has_rows(module: nn.Module) -> bool:
    """Whether ``module`` is a linear layer, or a convolution that reads patches of all of its input."""
    if isinstance(module, _ConvNd) and (module.groups > 1 or isinstance(module, _ConvTransposeNd)):
        return False
    return is_consumer(module)


def shape_of_rows(module: nn.Module, given: Any) -> torch.Size | None:
    """Samples and positions that a layer gives rows for; None where it is not given any.

    Args:
        module: one with :func:`has_rows`.
        given: its first argument, whatever that is.
    """
    if not isinstance(given, Tensor) or given.layout is not torch.strided or given.is_nested:
        return None
    if not given.numel():
        return None
    inputs = module.get_parameter("weight").shape[1]
    if not isinstance(module, _ConvNd):
        return given.shape[:-1] if given.ndim > 1 and given.shape[-1] == inputs else None
    if given.ndim != 2 + len(module.kernel_size) or given.shape[1] != inputs:
        return None
    return torch.Size((len(given), *_output_sizes(module, given)))


def without_channels(module: nn.Module, shape: torch.Size) -> torch.Size:
    """The shape of an output, of which the channels are left out."""
    return torch.Size((*shape[:1], *shape[2:])) if isinstance(module, _ConvNd) else shape[:-1]


def output_rows(module: nn.Module, output: Tensor, rows: Tensor) -> Tensor:
    """What ``module`` gave at some samples and positions, of which no other is copied.

    Args:
        module: one with :func:`has_rows`.
        output: what it gave, or something of that shape.
        rows: which, int64, (S,): samples count first, then positions.

    Returns:
        (S, out channels).
    """
    if not isinstance(module, _ConvNd):
        return output.flatten(0, -2)[rows]
    positions = output.shape[2:].numel()
    return output.flatten(2)[rows // positions, :, rows % positions]


def random_rows(
    module: nn.Module, output: Tensor, per_sample: int, generator: torch.Generator
) -> Tensor:
    """Distinct rows for :func:`output_rows`, at most ``per_sample`` of every sample: int64, (S,).

    Of samples in several batches the same are drawn as of all at once.
    """
    samples = len(output)
    positions = output.numel() // (samples * output.shape[1 if isinstance(module, _ConvNd) else -1])
    if positions <= per_sample:
        return torch.arange(samples * positions, device=output.device)
    # Drawn on the CPU, so that every device draws the same.
    noise = torch.rand(samples, positions, generator=generator, dtype=torch.float32)
    chosen = noise.topk(per_sample, dim=1).indices + positions * torch.arange(samples)[:, None]
    return chosen.flatten().to(output.device)


def input_rows(module: nn.Module, inputs: Tensor, output_shape: torch.Size, rows: Tensor) -> Tensor:
    """What ``module`` reads for some rows of its output.

    Args:
        module: one with :func:`has_rows`.
        inputs: what it is given.
        output_shape: shape of what it gives.
        rows: as of :func:`output_rows`, int64, (S,).

    Returns:
        (S, D), in the order of ``module.weight.flatten(1)``: ``rows @ weight.flatten(1).T + bias`` is
        the output.
    """
    if not isinstance(module, _ConvNd):
        return inputs.flatten(0, -2)[rows]
    padding = _padding(module)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = pad(inputs, padding, mode=mode) if any(padding) else inputs
    spatial, outputs = padded.shape[2:], output_shape[2:]
    # Position at which the patch of every output begins, and how far its taps are from it.
    sample, position = rows // math.prod(outputs), rows % math.prod(outputs)
    start, taps = torch.zeros_like(rows), torch.zeros(1, dtype=torch.int64, device=rows.device)
    for axis, size in enumerate(spatial):
        place = position // math.prod(outputs[axis + 1 :]) % outputs[axis]
        start = start * size + place * module.stride[axis]
        steps = torch.arange(module.kernel_size[axis], device=rows.device) * module.dilation[axis]
        taps = (taps[:, None] * size + steps).flatten()
    patches = padded.flatten(2)[sample[:, None], :, start[:, None] + taps]
    return patches.transpose(1, 2).flatten(1)


def _padding(module: _ConvNd) -> list[int]:
    """Last axis first, before and after each."""
    # What torch notes at construction counts where padding has a mode or is "same"; else the attribute.
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return [size for size in reversed(module.padding) for _ in range(2)]
    return list(module._reversed_padding_repeated_twice)


def gives_rows(module: nn.Module, inputs: Tensor, output: Tensor, rows: Tensor) -> bool:
    """Whether some rows of the output are the product of the weight and what was read for them.

    They are not where a layer has a forward of its own, or a hook changes what it gives.

    Args:
        module: one with :func:`has_rows`.
        inputs: what it is given, of :func:`shape_of_rows`.
        output: what it gives for them, of that shape, and with as many channels as it has filters.
        rows: as of :func:`output_rows`.
    """
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    read = wide(input_rows(module, inputs, output.shape, rows))
    found = torch.cat([read @ wide(part).flatten(1).T for part in in_blocks(weight)], 1)
    found = found if bias is None else found + wide(bias)
    wanted = wide(output_rows(module, output, rows))
    return bool((found - wanted).norm() <= ROUNDING * wanted.norm())


def _output_sizes(module: _ConvNd, inputs: Tensor) -> torch.Size:
    padding = _padding(module)[::-1]
    ends = zip(padding[::2], padding[1::2], strict=True)
    geometry = zip(
        inputs.shape[2:], ends, module.kernel_size, module.dilation, module.stride, strict=True
    )
    return torch.Size(
        (size + sum(both) - dilation * (kernel - 1) - 1) // stride + 1
        for size, both, kernel, dilation, stride in geometry
    )
