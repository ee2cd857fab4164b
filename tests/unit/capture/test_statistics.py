"""Second moments against numpy; how those of several ranks are merged is in trainer/test_merging.py."""

import numpy as np
import pytest
import torch

from acsp_lightning.capture.statistics import InputMoments, check_positions


def test_maps_of_two_sizes_are_refused() -> None:
    check_positions("conv", 16, 16)
    with pytest.raises(ValueError, match=r"'conv' gave maps of 16 and of 36 positions"):
        check_positions("conv", 16, 36)


def test_second_moments_against_numpy() -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = InputMoments(0, torch.zeros(5, 5, dtype=torch.float64))
    found = start.with_rows(rows[:, :13]).with_rows(rows[:, 13:])
    values = rows.numpy()
    assert found.count == 40
    np.testing.assert_allclose(found.mean, values @ values.T / 40)


@pytest.mark.parametrize("split", [[40], [3, 37], [3, 2, 20, 15], [20, 20], [1] * 40])
@pytest.mark.parametrize("width", [5, 30, 160, 200])
def test_few_vectors_are_held_and_many_are_summed(width: int, split: list[int]) -> None:
    """A layer of 160 inputs holds 40 vectors, one of 30 only seven."""
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(width, 40, generator=generator, dtype=torch.float64)
    products = rows.numpy() @ rows.numpy().T
    none = InputMoments(0, rows[:, :0])
    found = none
    for part in rows.split(split, 1):
        found = found.with_rows(part)
    assert found.count == 40
    assert (found.vectors is not None) is (width >= 160)
    np.testing.assert_allclose(found.total, products)
    np.testing.assert_allclose(found.mean, products / 40)
    np.testing.assert_allclose(found.power, products.diagonal() / 40)
    assert none.count == 0
    assert none.held.shape == (width, 0)
