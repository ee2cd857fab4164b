import errno
import gc
import io
import warnings
from typing import Any

import pytest
import torch

from acsp_lightning.structure.store import Store


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acsp_lightning.structure.store.ROOM", 1000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_come_back_as_they_were(dtype: torch.dtype) -> None:
    store = Store()
    tensors = [torch.randn(7, 5, 11).movedim(0, place % 3).to(dtype) for place in range(6)]
    kept = [store.keep(tensor) for tensor in tensors]
    in_memory = [one.held is tensor or isinstance(one.held, torch.Tensor) for one, tensor in
                 zip(kept, tensors, strict=True)]  # fmt: skip
    assert in_memory == sorted(in_memory, reverse=True)
    assert not in_memory[-1]
    for _ in range(2):  # in any order, any number of times
        for one, tensor in reversed(list(zip(kept, tensors, strict=True))):
            assert torch.equal(one.tensor, tensor)
            assert (one.shape, one.dtype, one.device) == (tensor.shape, dtype, tensor.device)


def test_the_file_is_closed_with_the_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or warnings of files that nobody closed would fail this test."""
    kept = [Store().keep(torch.randn(1000)), Store().keep(torch.randn(1000))]
    expected = kept[1].tensor
    del kept[0]
    gc.collect()
    assert torch.equal(kept[0].tensor, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.clear()
        gc.collect()


class Full(io.BytesIO):
    """A disk with room for 3000 bytes."""

    def write(self, data: Any) -> int:
        room = 3000 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[:room])


def test_on_a_full_disk_tensors_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    store, tensors = Store(), [torch.randn(500) for _ in range(4)]
    kept = [store.keep(tensor) for tensor in tensors]
    assert [isinstance(one.held, torch.Tensor) for one in kept] == [False, True, False, True]
    for one, tensor in zip(kept, tensors, strict=True):
        assert torch.equal(one.tensor, tensor)


def test_where_no_file_can_be_made_tensors_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    tensor = torch.randn(500)
    assert torch.equal(Store().keep(tensor).tensor, tensor)


def test_an_empty_tensor() -> None:
    store = Store()
    store.keep(torch.zeros(500))
    assert store.keep(torch.zeros(0, 3)).tensor.shape == (0, 3)


def test_tensors_whose_bytes_do_not_say_all_stay_in_memory() -> None:
    store, images = Store(), torch.randn(40, 40)
    odd = [images.to_sparse(), torch.complex(images, images).conj()]
    store.keep(images)
    for tensor in odd:
        assert torch.equal(store.keep(tensor).tensor.to_dense(), tensor.to_dense())
    assert not isinstance(store.keep(images).held, torch.Tensor)
