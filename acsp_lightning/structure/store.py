"""Tensors kept for later: some in memory, the others in a temporary file."""

import tempfile
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes that stay in memory. What 512 pictures give in all layers of a ResNet-50 takes 1.2 GB.
ROOM = 2**26


class Store:
    """Keeps tensors; a file without a name takes those that exceed :data:`ROOM`.

    It lies where Python makes temporary files (``TMPDIR``), and is gone with the last tensor in it.
    Where nothing can be written, tensors stay in memory, and so do sparse, nested and quantized ones.
    """

    def __init__(self) -> None:
        self._used = 0
        self._file: _File | None = None

    def keep(self, tensor: Tensor) -> "Kept":
        """A handle of a tensor that nobody changes."""
        tensor = tensor.detach()
        held: Tensor | _Place = tensor
        if not _is_plain(tensor):
            return Kept(tensor.shape, tensor.dtype, tensor.device, held)
        self._used += tensor.nbytes
        if self._used > ROOM:
            try:
                self._file = self._file or _File()
                held = self._file.write(tensor)
            except OSError:
                self._file = None
        return Kept(tensor.shape, tensor.dtype, tensor.device, held)


class _File:
    """A temporary file that is closed when nobody needs it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def write(self, tensor: Tensor) -> "_Place":
        place, left = self._file.seek(0, 2), _bytes(tensor.cpu().contiguous())
        while len(left):  # a disk that is nearly full takes a part
            left = left[self._file.write(left) :]
        return _Place(self, place)

    def read(self, place: int, tensor: Tensor) -> None:
        self._file.seek(place)
        left = _bytes(tensor)
        while len(left):
            left = left[self._file.readinto(left) :]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in which file the bytes of a tensor begin."""

    file: _File
    start: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor that is kept.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        device: its device.
        held: itself, or where it is to be found.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    held: Tensor | _Place

    @property
    def tensor(self) -> Tensor:
        """The tensor, read from the file if it lies there."""
        if isinstance(self.held, Tensor):
            return self.held
        found = torch.empty(self.shape, dtype=self.dtype)
        self.held.file.read(self.held.start, found)
        return found.to(self.device)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the bytes of a tensor say all of it."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor of the CPU."""
    return tensor.flatten().view(torch.uint8).numpy().data
