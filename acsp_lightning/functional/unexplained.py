"""What is lost of a linear map of D inputs if some of them have to be reconstructed from the others.

The inputs x are in units of their own sizes, with second moments G of unit diagonal; W is the map,
(D, M). With x' the least-squares reconstruction of x from the inputs that stay, under the ridge of
:func:`acsp_lightning.functional.reconstruction_map`, what is lost is E |W^T (x - x')|^2.

Everything that does not depend on which inputs go is computed once, and what does on the smaller side,
in a system of those that go or of those that stay; or, where vectors are fewer than inputs, in one of as
many unknowns as there are vectors, updated from one choice to the next.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from acsp_lightning.functional.least_squares import RIDGE

# Of the diagonal, added before a square root is taken. A sum of products of float32 is known to less.
ROUNDING = 1e-13


class Unexplained(Protocol):
    """What some inputs of a map explain."""

    @property
    def whole(self) -> float:
        """E |W^T x|^2."""

    def losses(self, choices: Iterable[Tensor]) -> list[float]:
        """What is lost by each of some choices, at least 0.

        Args:
            choices: indices of the inputs to be reconstructed from the others, int64, at least one each.
        """


@dataclass(frozen=True, slots=True)
class UnexplainedByMoments:
    """From the second moments of the inputs.

    Attributes:
        moments: G + ridge, (D, D).
        inverse: of that, (D, D). Its block of some inputs is the inverse of their residual moments given
            the others.
        weight: W, (D, M).
        told: moments @ W, (D, M).
    """

    moments: Tensor
    inverse: Tensor
    weight: Tensor
    told: Tensor

    @classmethod
    def of(cls, moments: Tensor, weight: Tensor) -> "UnexplainedByMoments":
        """From G, float64 (D, D), which is overwritten, and W."""
        moments.diagonal().add_(RIDGE)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
        return cls(moments, inverse, weight, moments @ weight)

    @property
    def whole(self) -> float:
        """E |W^T x|^2."""
        return float((self.weight * self.told).sum() - RIDGE * self.weight.square().sum())

    def losses(self, choices: Iterable[Tensor]) -> list[float]:
        """What is lost by each of some choices; see :class:`Unexplained`."""
        return [max(0.0, float(self._loss(_marked(gone, self.weight)))) for gone in choices]

    def _loss(self, gone: Tensor) -> Tensor:
        ridge = RIDGE * self.weight[gone].square().sum()  # is not part of the residual
        if 2 * int(gone.sum()) <= len(gone):
            return _explained(self.inverse, gone, self.weight) - ridge
        whole = (self.weight * self.told).sum()
        return whole - _explained(self.moments, ~gone, self.told) - ridge


@dataclass(frozen=True, slots=True)
class UnexplainedByVectors:
    """From the vectors themselves, where they are fewer than the inputs.

    Attributes:
        vectors: X, with X X^T = G, (D, R).
        weight: W, (D, M).
        outputs: X^T W, (R, M).
    """

    vectors: Tensor
    weight: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, vectors: Tensor, weight: Tensor) -> "UnexplainedByVectors":
        """From X, float64 (D, R), and W."""
        return cls(vectors, weight, vectors.T @ weight)

    @property
    def whole(self) -> float:
        """E |W^T x|^2."""
        return float(self.outputs.square().sum())

    def losses(self, choices: Iterable[Tensor]) -> list[float]:
        """What is lost by each of some choices; see :class:`Unexplained`."""
        found = []
        before = _marked(torch.zeros(0, dtype=torch.int64), self.weight)
        outputs = torch.zeros_like(self.outputs)  # of those that go
        for chosen in choices:
            gone = _marked(chosen, self.weight)
            for sign, changed in ((1, gone & ~before), (-1, before & ~gone)):
                outputs.addmm_(self.vectors[changed].T, self.weight[changed], alpha=sign)
            before = gone
            # By Woodbury's identity the residual moments are ridge * X (ridge + Xs^T Xs)^-1 X^T, with
            # the rows Xs of those that stay.
            kept = self.vectors[~gone]
            system = kept.T @ kept
            system.diagonal().add_(RIDGE)
            found.append(RIDGE * float(_explained(system, slice(None), outputs)))
        return found


def square_root(products: Tensor) -> Tensor:
    """A matrix (D, D) whose product with its own transpose is ``products``, (D, D), to rounding."""
    level = products.diagonal().max().clamp(min=torch.finfo(products.dtype).tiny / ROUNDING)
    raised = products + ROUNDING * level * torch.eye(len(products)).to(products)
    root: Tensor = torch.linalg.cholesky_ex(raised).L
    return root


def _explained(system: Tensor, chosen: Tensor | slice, right: Tensor) -> Tensor:
    """Trace of B^T A^-1 B, with A and B the blocks of some rows and columns of a system and a matrix."""
    factor = torch.linalg.cholesky(system[chosen][:, chosen])
    solved: Tensor = torch.linalg.solve_triangular(factor, right[chosen], upper=False)
    return solved.square().sum()


def _marked(chosen: Tensor, weight: Tensor) -> Tensor:
    """Which rows of a weight are chosen, bool (D,), on its device."""
    marks = torch.zeros(len(weight), dtype=torch.bool)
    marks[chosen] = True
    return marks.to(weight.device)
