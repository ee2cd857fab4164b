"""A device without float64, as Apple's MPS is, on a machine that has none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from acsp_lightning.functional.precision import has_float64

DEVICE = torch.device("meta")  # of which nobody here makes tensors for another reason
CPU = torch.device("cpu")

# The operations that real devices let read tensors of the CPU beside their own.
MIXED = {"copy_", "index", "index_put_", "_index_put_impl_", "_to_copy"}


class OnDevice(Tensor):
    """A tensor that says it lies on :data:`DEVICE`; its values lie on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        found: OnDevice = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        found.inner = inner
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner!r})"


class _Guard(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.__name__.partition(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if len(ours) < sum(tensor.device == DEVICE for tensor in tensors):
        raise RuntimeError(f"{name}: torch made a tensor of the device without the guard: no data")
    device = kwargs.get("device")
    here = device == DEVICE if device is not None else bool(ours)
    if here and ours and name not in MIXED:
        for other in tensors:
            if not isinstance(other, OnDevice) and other.ndim:
                raise RuntimeError(f"{name}: all tensors have to be on one device")
    if name == "copy_":
        here = isinstance(args[0], OnDevice)
    if device is not None:
        kwargs = {**kwargs, "device": CPU}
    wrappers = {id(tensor.inner): tensor for tensor in ours}
    result = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not here:
            return leaf
        if leaf.dtype == torch.float64:
            raise TypeError(f"{name}: the device has no float64")
        known = wrappers.get(id(leaf))  # an operation in place
        return OnDevice(leaf) if known is None else known

    return tree_map(wrapped, result)


def _bare(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, OnDevice) else leaf


@contextmanager
def device_without_float64() -> Iterator[torch.device]:
    """Whatever makes float64 on the device that is given, or mixes it with the CPU, raises."""
    has_float64.cache_clear()
    try:
        with _Guard(), torch.no_grad():
            yield DEVICE
    finally:
        has_float64.cache_clear()


def moved(model: nn.Module) -> nn.Module:
    """The same network on the device, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer)
    return model
