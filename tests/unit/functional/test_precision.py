"""Arithmetic in float64 for a device that has none: on the CPU, with the same results."""

from types import SimpleNamespace

import pytest
import torch
from helpers.no_float64 import CPU, DEVICE, OnDevice, device_without_float64
from torch import Tensor

from acsp_lightning.functional import (
    class_moments,
    class_separation,
    compare_channels,
    fold_input,
    reconstruction_map,
    refit_weight,
)
from acsp_lightning.functional.moments import ClassSums
from acsp_lightning.functional.precision import (
    alike,
    device_of_float64,
    exact_products,
    has_float64,
    in_blocks,
    wide,
)

VALUES = torch.randn(30, 5, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3


def test_the_guard_guards() -> None:
    """What fails on such a device fails under the guard, or the other tests would say nothing."""
    with device_without_float64() as device:
        there = VALUES.to(device)
        assert isinstance(there, OnDevice)
        for work in (
            lambda: there.double(),
            lambda: VALUES.double().to(device),
            lambda: torch.zeros(2, dtype=torch.float64, device=device),
            lambda: there.new_zeros(2, dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="has no float64"):
                work()
        with pytest.raises(RuntimeError, match="on one device"):
            there + VALUES


def test_devices() -> None:
    assert has_float64(CPU)
    assert device_of_float64(CPU) == CPU
    with device_without_float64():
        assert not has_float64(DEVICE)
        assert device_of_float64(DEVICE) == CPU
    assert has_float64(DEVICE)


def test_conversions() -> None:
    half = VALUES.half()
    assert torch.equal(wide(half), half.double())
    assert alike(VALUES.double(), half).dtype == torch.float16
    with device_without_float64() as device:
        there = VALUES.to(device)
        found = wide(there)
        assert (type(found), found.dtype) == (Tensor, torch.float64)
        back = alike(found, there)
        assert isinstance(back, OnDevice)
        assert back.dtype == torch.float32
        assert torch.equal(back.cpu(), VALUES)
        assert torch.equal(alike(there, VALUES.double()), VALUES.double())


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_moments_and_what_is_computed_from_them() -> None:
    expected = class_moments(VALUES, LABELS)
    with device_without_float64() as device:
        found = class_moments(VALUES.to(device), LABELS.to(device))
        assert found.mean.device == found.count.device == CPU
        close(found.m2, expected.m2)
        close(compare_channels(found).distances, compare_channels(expected).distances)
        kept = torch.tensor([0, 2])
        separated = class_separation(found, kept.to(device).cpu()).after
        torch.testing.assert_close(
            separated, class_separation(expected, kept).after, rtol=1e-5, atol=1e-6, equal_nan=True
        )


def test_sums_stay_on_the_device_until_their_moments_are_asked_for() -> None:
    expected = class_moments(VALUES, LABELS)
    with device_without_float64() as device:
        first, second = ClassSums.about(VALUES[:20].to(device), 3), ClassSums.about(VALUES[20:], 3)
        first.add_(VALUES[:20].to(device), LABELS[:20].to(device))
        second.add_(VALUES[20:], LABELS[20:])
        second = second.to(device)
        origin = (first.whole() + second.whole()) / len(LABELS)
        for part in (first, second):
            part.move_(origin)
        totals = (first.count + second.count, first.origin)
        merged = ClassSums(*totals, first.total + second.total, first.squares + second.squares)
        assert merged.total.device == DEVICE
        close(merged.moments().mean, expected.mean)
        close(merged.moments().m2, expected.m2)


def test_folding_gives_a_weight_on_the_device() -> None:
    rows = VALUES.flatten(1).T
    second, weight, kept = rows @ rows.T, torch.randn(3, 20), torch.tensor([1, 4, 5, 9])
    expected = fold_input(weight, reconstruction_map(second, kept))
    with device_without_float64() as device:
        mapping = reconstruction_map(second.to(device), kept.to(device))
        found = fold_input(weight.to(device), mapping)
        assert (found.device, found.dtype) == (DEVICE, torch.float32)
        close(found, expected)


@pytest.mark.parametrize("biased", [True, False])
def test_a_refit_gives_a_weight_on_the_device(biased: bool) -> None:
    inputs, targets, weight = VALUES.flatten(1), torch.randn(30, 4), torch.randn(4, 20)
    bias = torch.randn(4) if biased else None
    expected = refit_weight(inputs, targets, weight, bias)
    with device_without_float64() as device:
        moved = [None if tensor is None else tensor.to(device) for tensor in (weight, bias)]
        found = refit_weight(inputs.to(device), targets.to(device), *moved)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.device == DEVICE
            close(one, other)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("block", [1, 35, 60, 10**6])
def test_blocks_are_views_of_a_limited_size(
    block: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acsp_lightning.functional.precision.BLOCK", block)
    parts = in_blocks(VALUES, dim)
    assert torch.equal(torch.cat(parts, dim), VALUES)
    assert all(
        part.untyped_storage().data_ptr() == VALUES.untyped_storage().data_ptr() for part in parts
    )
    assert all(part.numel() <= max(block, part.numel() // part.shape[dim]) for part in parts)


def test_products_are_exact_for_a_while() -> None:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        for found in ("tf32", "ieee"):
            settings.fp32_precision = found
            with exact_products():
                assert settings.fp32_precision == "ieee"
            assert settings.fp32_precision == found
    finally:
        settings.fp32_precision = before


def test_products_are_exact_where_torch_has_one_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before torch 2.9."""
    settings = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends.cuda, "matmul", settings)
    with exact_products():
        assert settings.allow_tf32 is False
    assert settings.allow_tf32 is True
