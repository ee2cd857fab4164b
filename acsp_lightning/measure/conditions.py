"""Under what conditions the time of a network counts."""

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from acsp_lightning.measure.latency import is_batch_size
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.inputs import of_batch_size


@dataclass(frozen=True)  # without slots, which jsonargparse cannot show as a default
class LatencyAt:
    """Under what conditions the forward pass is timed that ``selection.latency`` is a share of.

    On the device of the module, in eval mode, without gradients and autocast.

    Args:
        batch_size: number of samples in the pass, at least 1.
        compiled: time networks that are compiled with ``torch.compile``; False: run eagerly.
        channels_last: time networks whose weights and inputs of images are in this memory format;
            False: in the format that they have.
        precision: cast weights, buffers and inputs to "float32", "float16" or "bfloat16"; None: as they
            are.

    Raises:
        ValueError: if an argument is out of its range.
    """

    batch_size: int = 1
    compiled: bool = False
    channels_last: bool = False
    precision: Literal["float32", "float16", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if not is_batch_size(self.batch_size):
            raise ValueError(
                f"latency_at.batch_size is {self.batch_size!r}; it must be one integer >= 1, such as 32."
            )
        for name in ("compiled", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"latency_at.{name} is {getattr(self, name)!r}; it must be True or False."
                )
        allowed = get_args(get_args(get_type_hints(LatencyAt)["precision"])[0])
        if self.precision is not None and self.precision not in allowed:
            raise ValueError(
                f"latency_at.precision is {self.precision!r}; it must be one of {', '.join(allowed)}, "
                "or None."
            )

    def network(self, model: nn.Module) -> nn.Module:
        """``model`` under these conditions: itself if nothing is changed, else a copy; not compiled."""
        if self.precision is None and not self.channels_last:
            return model
        copy = eager_copy(model)
        if self.precision is not None:
            copy.to(getattr(torch, self.precision))
        return copy.to(memory_format=torch.channels_last) if self.channels_last else copy

    def inputs(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments of forward under these conditions.

        Args:
            arguments: of any batch size, see :func:`acsp_lightning.structure.inputs.of_batch_size`.
        """

        def converted(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            if self.precision is not None:
                leaf = leaf.to(getattr(torch, self.precision))
            images = self.channels_last and leaf.ndim == 4
            return leaf.contiguous(memory_format=torch.channels_last) if images else leaf

        found: tuple[Any, ...] = tree_map(converted, of_batch_size(arguments, self.batch_size))
        return found

    def __str__(self) -> str:
        """A few words for tables."""
        words = [f"batch {self.batch_size}"]
        words += ["compiled"] * self.compiled + ["channels last"] * self.channels_last
        return ", ".join([*words, *([self.precision] if self.precision else [])])
