import copy

import pytest
import torch
from helpers.normed import Gained, HandNorm, MapNorm, NormAct, Responses, norms_over_kept
from torch import Tensor, nn

from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.norms import over_kept
from acsp_lightning.structure.plan import PruningPlan, SideCut

KEPT = (0, 3, 4, 6)
GAMMA = ("gamma:3", "beta:3")


@pytest.mark.parametrize(
    ("layer", "dim", "sides"),
    [
        (nn.LayerNorm(8), -1, ["out"]),
        (nn.RMSNorm(8), -1, ["out"]),
        (MapNorm(8), 1, ["out"]),
        (nn.GroupNorm(1, 8), 1, ["out"]),
        (NormAct(8), 1, ["out"]),
        (HandNorm(8), 1, ["weight:0", "bias:0"]),
        (Responses(8), 3, GAMMA),
        (Gained(8, 5, 3), 1, ["in"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_statistics_are_those_of_the_channels_that_stay(layer: nn.Module, dim: int, sides) -> None:
    """What the others hold makes no difference; the truth is a formula written by hand."""
    model = nn.Sequential(layer).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    cuts = [SideCut("0", side, 8, KEPT) for side in sides]
    if isinstance(layer, NormAct):
        cuts.append(SideCut("0.act", "out", 8, KEPT))
    plan = PruningPlan(tuple(cuts))
    x = torch.rand(2, 8, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())

    def outputs(inputs: Tensor) -> Tensor:
        found = model(inputs).detach()
        return found if sides == ["in"] else found.index_select(dim, torch.tensor(KEPT))

    with norms_over_kept(model, plan):
        expected = outputs(x)
    with over_kept(model, [Norm("0", dim)], plan):
        assert torch.allclose(outputs(x), expected, rtol=1e-12)
        others = x.index_fill(dim, torch.tensor([1, 2, 5, 7]), 1e6)
        assert torch.equal(outputs(others), outputs(x))
    assert not torch.allclose(outputs(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plan_that_leaves_a_norm_alone_changes_nothing() -> None:
    model, x = nn.Sequential(nn.LayerNorm(8)), torch.rand(2, 8)
    expected = model(x)
    with over_kept(model, [Norm("0", -1)], PruningPlan()):
        assert torch.equal(model(x), expected)


def test_outputs_that_go_as_well_are_passed_over() -> None:
    model = nn.Sequential(Gained(8, 5, 3))
    plan = PruningPlan((SideCut("0", "in", 8, KEPT), SideCut("0", "out", 5, (1, 4))))
    x = torch.rand(2, 8, 6, 6)
    with over_kept(model, [Norm("0", 1)], plan):
        found = model(x)
    with norms_over_kept(model, plan):
        expected = model(x)
    assert torch.allclose(found[:, [1, 4]], expected[:, [1, 4]], rtol=1e-5)
