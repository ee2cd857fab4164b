"""Arguments of forward: how many samples they have, some of these, copies, and a description."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def positional(inputs: Tensor | Mapping[str, Tensor] | tuple[object, ...]) -> tuple[Any, ...]:
    """What a user passes as inputs, as positional arguments of forward.

    Args:
        inputs: a tuple of arguments; or a tensor or a dict of tensors, which is the only argument.

    Raises:
        TypeError: if ``inputs`` is none of these.
    """
    if not isinstance(inputs, Tensor | Mapping | tuple):
        raise TypeError(
            "The inputs must be a tensor, a dict of tensors, or a tuple of positional arguments; "
            f"found {type(inputs).__name__}."
        )
    return inputs if isinstance(inputs, tuple) else (inputs,)


def sample_count(inputs: tuple[Any, ...]) -> int:
    """The batch size of arguments of forward: the length of the first tensor that has one.

    Raises:
        ValueError: if there is no such tensor, or it is empty.
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if not tensors or not len(tensors[0]):
        raise ValueError(
            f"The first tensor of the inputs ({describe_inputs(inputs)}) has no sample; its first "
            "dimension must be that of the batch."
        )
    return len(tensors[0])


def is_batched(leaf: Any, samples: int) -> bool:
    """Whether ``leaf`` is a tensor that has a row for each of the samples."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == samples


def samples_at(inputs: tuple[Any, ...], places: Sequence[int]) -> tuple[Any, ...]:
    """Some samples of arguments of forward, in the order of their places.

    Raises:
        ValueError: as :func:`sample_count`.
    """
    samples, rows = sample_count(inputs), torch.tensor(places)

    def taken(leaf: Any) -> Any:
        return leaf.detach()[rows.to(leaf.device)] if is_batched(leaf, samples) else leaf

    batch: tuple[Any, ...] = tree_map(taken, inputs)
    return batch


def of_batch_size(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """``inputs`` with ``size`` samples: the first ones, again and again if there are too few.

    Raises:
        ValueError: as :func:`sample_count`.
    """
    samples = sample_count(inputs)
    return samples_at(inputs, [place % samples for place in range(size)])


def cloned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the tensors in ``inputs``, outside any graph; all else as it is."""
    copies: tuple[Any, ...] = tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, inputs
    )
    return copies


def varied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """``inputs`` with constant floating-point tensors (zeros, ones) replaced by normal noise.

    Constant images hide the differences between positions that a check lives on.
    """

    def vary(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        if leaf.numel() > 0 and bool((leaf != leaf.flatten()[0]).any()):
            return leaf
        noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0))
        return noise.to(leaf.device, leaf.dtype)

    changed: tuple[Any, ...] = tree_map(vary, inputs)
    return changed


def describe_inputs(inputs: tuple[Any, ...]) -> str:
    """The shapes of the tensors in ``inputs``, for messages."""
    return ", ".join(
        f"tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
        for leaf in tree_leaves(inputs)
    )
