import numpy as np
import pytest
import torch

from acsp_lightning.functional.pooled import PooledMoments


@pytest.mark.parametrize("sizes", [[50], [1, 49], [7, 7, 7, 29], [1] * 50])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_as_numpy_has_it_of_all_at_once(sizes: list[int], dim: int) -> None:
    values = 100 + torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:20] += 30.0  # parts of different means
    pooled = PooledMoments()
    for part in values.movedim(1, dim).split(sizes, 0 if dim != 0 else 1):
        pooled.add(part, dim)
    np.testing.assert_allclose(pooled.mean, values.numpy().mean((0, 2)))
    np.testing.assert_allclose(pooled.spread, values.numpy().std((0, 2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_in_single_precision_at_least(dtype: torch.dtype) -> None:
    values = (300 + torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    pooled = PooledMoments()
    for part in values.split(900):
        pooled.add(part, 1)
    assert pooled.mean.dtype == torch.float32
    np.testing.assert_allclose(pooled.mean, values.double().mean(0), rtol=1e-6)
    np.testing.assert_allclose(pooled.spread, values.double().std(0, correction=0), rtol=1e-4)


def test_a_constant_has_no_spread() -> None:
    pooled = PooledMoments()
    for size in (3, 5):
        pooled.add(torch.full((size, 2), 0.1), 1)
    assert pooled.spread.max() < 1e-7
