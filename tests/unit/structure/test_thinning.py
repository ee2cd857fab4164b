"""A refit to a part of its samples; that it fits like one to these samples, test_refit.py shows."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from acsp_lightning.structure.refit import prepare_refit
from acsp_lightning.structure.thinning import thinned

X = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Scaled(nn.Module):
    """Takes an argument that is no sample."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, scale: float | Tensor, more: Tensor | None = None) -> Tensor:
        return self.read(x * (scale.to_dense() if isinstance(scale, Tensor) else scale))


class Doubled(nn.Module):
    """Reads two crops of every sample at once, so that rows of maps are no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        crops = torch.cat([x, x.flip(-1) if other is None else other])
        return self.read(crops).mean((2, 3))


def check_every_other_batch(model: nn.Module, batches: list[tuple[object, ...]]) -> None:
    """Of four, the first and the third."""
    whole = prepare_refit(model.double().eval(), ["read"], batches)
    found = thinned(whole, 2)
    assert [id(batch) for batch in found.inputs] == [id(batches[0]), id(batches[2])]
    assert list(found.targets["read"].parts) == [whole.targets["read"].parts[p] for p in (0, 2)]


@pytest.mark.parametrize("others", [None, 5], ids=["twice the rows", "tensors of two lengths"])
def test_where_rows_are_no_samples_whole_batches_are_left(others: int | None) -> None:
    batches = [(x,) if others is None else (x, x[:others]) for x in X.split(10)]
    check_every_other_batch(Doubled(), batches)


@pytest.mark.parametrize(
    "scales",
    [
        [torch.tensor(2.0, dtype=torch.float64)] * 4,  # has no row for each sample
        [torch.ones(10, 1, 1, 1, dtype=torch.float64).to_sparse()] * 4,  # has, and cannot be sliced
        [1, 2, 3, 4],
        [2, 2, 2.0, 2],
        [True, True, 1, 1],
    ],
    ids=["number", "sparse", "numbers", "types", "flags"],
)
def test_arguments_that_are_not_of_a_sample_stay_with_their_batch(scales: list[object]) -> None:
    check_every_other_batch(Scaled(), list(zip(X.split(10), scales, strict=True)))


@pytest.mark.parametrize("kind", ["structure", "size"])
def test_batches_of_two_kinds_stay_apart(kind: str) -> None:
    batches: list[tuple[object, ...]] = []
    for place, x in enumerate(X.split(10)):
        if kind == "structure":
            batches.append((x, 2, x if place % 2 else None))
        else:
            batches.append((x[..., : 8 - place % 2], 2))
    check_every_other_batch(Scaled(), batches)


@pytest.mark.parametrize(("size", "step"), [(1, 8), (3, 8), (10, 3), (7, 2), (40, 5)])
def test_batches_are_as_full_as_before_and_no_fuller(size: int, step: int) -> None:
    whole = prepare_refit(
        nn.Sequential(nn.Conv2d(3, 4, 3)).double(), ["0"], [(x,) for x in X.split(size)]
    )
    found = thinned(whole, step)
    lengths = [len(images) for (images,) in found.inputs]
    assert torch.equal(torch.cat([images for (images,) in found.inputs]), X[::step])
    assert max(lengths) <= size
    assert all(one + other > size for one, other in itertools.pairwise(lengths))
    assert [part.shape[0] for part in found.targets["0"].parts] == lengths
