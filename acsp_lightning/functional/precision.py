"""Double precision where a device has it, and on the CPU where it has not."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Values converted to float64 at a time: of a wide layer's weights not even one copy should be made. A
# full block has more than 32 MiB, which glibc gives back as soon as it is freed.
BLOCK = 5 * 2**20


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64. Apple's MPS does not, nor do some of Intel's GPUs."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.ones(1, dtype=torch.float64, device=device) + 1
    except (RuntimeError, TypeError):
        return False
    return True


def device_of_float64(device: torch.device) -> torch.device:
    """The device itself, if it has float64, else the CPU."""
    return device if has_float64(device) else torch.device("cpu")


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float64, on its device if that has float64, else on the CPU."""
    return tensor.to(device_of_float64(tensor.device)).double()


def alike(tensor: Tensor, other: Tensor) -> Tensor:
    """A tensor in the dtype and on the device of another; either device may lack float64."""
    return tensor.to(device_of_float64(tensor.device)).to(other.dtype).to(other.device)


def in_blocks(tensor: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of a tensor along an axis, of about :data:`BLOCK` values: views of it."""
    return torch.split(tensor, max(1, BLOCK * tensor.shape[dim] // max(1, tensor.numel())), dim)


@contextmanager
def exact_products() -> Iterator[None]:
    """Let float32 products on CUDA be exact to float32, and not to TF32, whatever the user has set."""
    settings: Any = torch.backends.cuda.matmul
    name, exact = (
        ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    )
    before = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)
