import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning.structure.branches import ADDITIONS, Branch, Sums, watched_branches

Added = list[tuple[str, bool]]


class Block(nn.Module):
    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.add = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), add

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.add(self.bn(self.conv(x)), x))


def sums_in(model: nn.Module) -> Added:
    """Layers whose outputs are added to something, and whether a norm has read them before."""
    found: Added = []
    sums = Sums(lambda branch, own, other: found.append((branch.layer, branch.norm is not None)))
    with watched_branches(model, ["conv"], sums):
        model(torch.randn(2, 3, 4, 4))
    return found


@pytest.mark.parametrize("add", [operator.add, torch.add, lambda own, x: x + own, operator.iadd])
def test_a_sum_behind_a_norm(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert sums_in(Block(add)) == [("conv", True)]


@pytest.mark.parametrize(
    "other", [lambda own, x: own * x, lambda own, x: own + 1, lambda own, _: own + own]
)
def test_what_is_no_sum_of_two(other: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert sums_in(Block(other)) == []


def test_no_hook_stays_and_a_failure_passes_through() -> None:
    model = Block(operator.sub)
    with pytest.raises(ZeroDivisionError), watched_branches(model, ["conv"], Sums(lambda *_: None)):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert ADDITIONS


def test_units_of_a_layer_before_its_norm() -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_var.copy_(torch.tensor([1.0, 4.0, 1.0]))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 1e-6]))
    branch = Branch("fc", nn.Linear(2, 3), 0, norm)
    rows = torch.ones(2, 3)
    # The last channel makes up for nothing.
    expected = torch.tensor([1.0, 1.0, 0.0]).expand(2, 3)
    torch.testing.assert_close(branch.in_own_units(rows).detach(), expected, rtol=1e-4, atol=1e-4)
    assert Branch("fc", nn.Linear(2, 3), 0).in_own_units(rows) is rows


def test_bytes_of_what_is_still_there() -> None:
    sums = Sums(lambda *_: None)
    with sums:
        first = torch.randn(10_000) + 0.0
        view = first.view(100, 100)
        small = first[:10] * 2
        assert sums.held == 40_000, "small ones do not count"
        second = first * 2
        assert sums.held == 80_000
        del first
        assert sums.held == 80_000, "the view holds it"
        second.untyped_storage().resize_(0)
        assert sums.held == 40_000, "memory that was taken away"
        del view
        assert sums.held == 0
    del small, second
