"""What is lost of a map, from both forms, against least squares on the vectors, written out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from acsp_lightning.functional import RIDGE
from acsp_lightning.functional.unexplained import (
    UnexplainedByMoments,
    UnexplainedByVectors,
    square_root,
)

INPUTS = 30
ORDER = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(5))
# From few to nearly all, and back: not every choice holds the one before.
CHOICES = [ORDER[:1], ORDER[:8], ORDER[3:18], ORDER[:15], ORDER[5:28], ORDER[1:], ORDER[20:], ORDER]


def vectors_of(count: int, *, dead: bool = False) -> Tensor:
    """(INPUTS, count), of unit second moments, correlated."""
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(INPUTS, 9, generator=generator, dtype=torch.float64)
    vectors = hidden @ torch.randn(9, count, generator=generator, dtype=torch.float64)
    vectors += 0.2 * torch.randn(INPUTS, count, generator=generator, dtype=torch.float64)
    vectors /= vectors.norm(dim=1, keepdim=True)
    if dead:
        vectors[[2, 17]] = 0
    return vectors


def weight_of(outputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(outputs)
    return torch.randn(INPUTS, outputs, generator=generator, dtype=torch.float64)


def lost(vectors: Tensor, weight: Tensor, gone: Tensor) -> float:
    """The error of a ridge regression, with the ridge as further samples below the vectors."""
    stay = [channel for channel in range(INPUTS) if channel not in gone.tolist()]
    samples = np.vstack([vectors.T.numpy(), np.sqrt(RIDGE) * np.eye(INPUTS)])
    error = samples[:, gone.numpy()]
    if stay:
        error = error - samples[:, stay] @ np.linalg.lstsq(samples[:, stay], error, rcond=None)[0]
    outputs = error @ weight[gone].numpy()
    return float((outputs**2).sum() - RIDGE * (weight[gone].numpy() ** 2).sum())


def both(vectors: Tensor, weight: Tensor) -> list[UnexplainedByMoments | UnexplainedByVectors]:
    return [
        UnexplainedByMoments.of(vectors @ vectors.T, weight),
        UnexplainedByVectors.of(vectors, weight),
    ]


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("outputs", [1, 7, 30])
@pytest.mark.parametrize("count", [3, 20, 200])
def test_what_is_lost_is_the_error_of_least_squares(count: int, outputs: int, dead: bool) -> None:
    vectors, weight = vectors_of(count, dead=dead), weight_of(outputs)
    expected = [lost(vectors, weight, gone) for gone in CHOICES]
    whole = float((vectors.T @ weight).square().sum())
    assert max(expected) > 0.5 * whole
    for found in both(vectors, weight):
        np.testing.assert_allclose(found.losses(CHOICES), expected, rtol=1e-6, atol=1e-9 * whole)
        assert found.whole == pytest.approx(whole, rel=1e-9)


def test_copies_that_stay_lose_next_to_nothing() -> None:
    vectors, weight = vectors_of(200), weight_of(7)
    vectors[[4, 11, 23]] = vectors[[0, 1, 2]]
    for found in both(vectors, weight):
        (loss,) = found.losses([torch.tensor([4, 11, 23])])
        assert 0 <= loss < 1e-4 * found.whole


def test_every_choice_is_answered_alone() -> None:
    """What was asked before does not tell."""
    for found in both(vectors_of(20), weight_of(7)):
        alone = [found.losses([gone])[0] for gone in CHOICES]
        np.testing.assert_allclose(found.losses(CHOICES), alone, rtol=1e-9)


def test_weights_of_zero_lose_nothing() -> None:
    for found in both(vectors_of(20), torch.zeros(INPUTS, 4, dtype=torch.float64)):
        assert found.losses(CHOICES) == [0.0] * len(CHOICES)
        assert found.whole == 0


@pytest.mark.parametrize("columns", [0, 1, 12, 40])
def test_square_root(columns: int) -> None:
    factor = 1e-6 * weight_of(max(columns, 1))[:, :columns]
    products = factor @ factor.T
    root = square_root(products)
    assert root.shape == (INPUTS, INPUTS)
    torch.testing.assert_close(root @ root.T, products, rtol=1e-9, atol=1e-23)
