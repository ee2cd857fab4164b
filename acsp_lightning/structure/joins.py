"""Where channels lie after they were joined with constants: coordinates, tables, zero padding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}

Span = tuple[int, int]


class Joins(TorchFunctionMode):
    """Records what is joined with parts that have no gradient, of which autograd knows nothing.

    Attributes:
        spans: by node of the autograd graph, where every part with a gradient begins and ends, in the
            order of the parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spans: dict[Any, list[Span]] = {}
        # Tensors whose width the tracer does not know: padded ones, and what was made of them.
        self._wider: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, and note where the parts of its result lie."""
        result = func(*args, **(kwargs or {}))
        if func in CONCATENATIONS:
            self._concatenated(result, *args, **(kwargs or {}))
        elif func is torch.nn.functional.pad:
            self._padded(result, *args, **(kwargs or {}))
        elif isinstance(result, Tensor) and any(id(leaf) in self._wider for leaf in tree_leaves(args)):
            self._wider[id(result)] = result
        return result

    def _concatenated(
        self, result: Tensor, tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None, **_: Any
    ) -> None:
        dim = (dim if axis is None else axis) % result.ndim
        if result.grad_fn is None or dim != _channel_axis(result):
            return
        if all(part.requires_grad and id(part) not in self._wider for part in tensors):
            return  # which the tracer sees itself
        spans, start = [], 0
        for part in tensors:
            end = start + part.shape[dim]
            if part.requires_grad:
                spans.append((start, end))
            start = end
        self.spans[result.grad_fn] = spans

    def _padded(self, result: Tensor, tensor: Tensor, pad: Sequence[int], *_: Any, **__: Any) -> None:
        axis = _channel_axis(result)
        place = 2 * (result.ndim - 1 - axis)  # pairs of sizes, the last axis first
        front = pad[place] if place < len(pad) else 0
        if result.grad_fn is not None and result.shape[axis] != tensor.shape[axis]:
            self.spans[result.grad_fn] = [(front, front + tensor.shape[axis])]
            self._wider[id(result)] = result


def _channel_axis(tensor: Tensor) -> int:
    """The second axis of maps, the last one of vectors and tokens."""
    return 1 if tensor.ndim > 3 else tensor.ndim - 1
