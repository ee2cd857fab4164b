"""Arguments of forward: an example to look at a network with, and the inputs of a batch."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def _moved(inputs: Any, device: torch.device) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)


@dataclass(frozen=True, slots=True)
class Example:
    """Arguments of forward to look at a network with.

    Attributes:
        traced: of two samples, since BatchNorm in train mode may need more than one.
        counted: of one sample, so that FLOPs are those of a sample.
    """

    traced: tuple[Any, ...]
    counted: tuple[Any, ...]

    @classmethod
    def of(cls, module: nn.Module, inputs: Any) -> "Example":
        """The example for ``module`` from the inputs of a batch; see :func:`example_inputs`."""
        return cls(example_inputs(module, inputs, 2), example_inputs(module, inputs, 1))

    def to(self, device: torch.device) -> "Example":
        """The same arguments on another device."""
        return Example(_moved(self.traced, device), _moved(self.counted, device))


def example_inputs(module: nn.Module, inputs: Any, samples: int) -> tuple[Any, ...]:
    """Arguments of ``module.forward`` for tracing and measuring.

    Args:
        module: its ``example_input_array``, where it is set, is used as it is: a tensor, a tuple of
            arguments, or a dict of named ones, moved to the module's device.
        inputs: inputs of a batch, used otherwise, cut to the first ``samples`` of the batch.
        samples: how many.
    """
    example = getattr(module, "example_input_array", None)
    if example is None:
        return (tree_map(lambda leaf: leaf[:samples] if isinstance(leaf, Tensor) else leaf, inputs),)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    return as_arguments(module, _moved(example, device))


def as_arguments(module: nn.Module, inputs: Any) -> tuple[Any, ...]:
    """The inputs of a batch as positional arguments of ``module.forward``.

    Lightning's convention: where ``example_input_array`` is a tuple, forward takes its entries one by
    one, and where it is a dict, by name; inputs of the same kind are handed on alike. Anything else
    is one argument.

    Raises:
        ValueError: if named inputs are not those that forward takes.
    """
    example = getattr(module, "example_input_array", None)
    if isinstance(example, tuple | list) and isinstance(inputs, tuple | list):
        return tuple(inputs)
    if isinstance(example, Mapping) and isinstance(inputs, Mapping):
        try:
            return inspect.signature(module.forward).bind(**inputs).args
        except TypeError as error:
            raise ValueError(
                f"example_input_array is a dict, so {type(module).__name__}.forward is called by name, "
                f"but it does not take {sorted(map(str, inputs))}: {error}."
            ) from error
    return (inputs,)
