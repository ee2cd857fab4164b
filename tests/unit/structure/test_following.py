import pytest
import torch
from helpers.networks import Wired
from torch import nn

from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.following import follow, tied_layers

X = (torch.rand(2, 3, 6, 6),)


def found_in(model: nn.Module):
    with evaluation_state(model):
        return follow(model, X)[0]


def test_layers_read_and_make_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    found = found_in(model)
    assert found.sides["0", "in"].tolist() == [0, 0, 0]
    assert torch.equal(found.sides["0", "out"], found.sides["1", "out"])
    assert torch.equal(found.sides["0", "out"], found.sides["3", "in"])
    assert found.mixed == {("0", "in"), ("0", "out"), ("3", "in"), ("3", "out")}


@pytest.mark.parametrize(
    ("layer", "ins", "outs"),
    [
        (nn.Conv2d(4, 4, 1, groups=4), [0, 1, 2, 3], [0, 1, 2, 3]),
        (nn.Conv2d(4, 8, 1, groups=4), [0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]),
        (nn.Conv2d(4, 4, 1, groups=2), [0, 0, 1, 1], [0, 0, 1, 1]),
        (nn.GroupNorm(2, 4), [0, 0, 1, 1], [0, 0, 1, 1]),
    ],
)
def test_blocks_of_channels(layer, ins, outs) -> None:
    found = found_in(nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(len(outs), 2, 1)))
    classes = found.channels.classes()
    for marks, blocks in ((found.sides["0", "out"], ins), (found.sides["2", "in"], outs)):
        roots = classes.of(marks).tolist()
        assert [sorted(set(roots)).index(root) for root in roots] == blocks


def test_a_share_of_every_group_where_that_leaves_more_units() -> None:
    layer = nn.Conv2d(8, 4, 1, groups=2)
    found = found_in(nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(4, 2, 1)))
    classes = found.channels.classes()
    assert classes.of(found.sides["1", "in"]).tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    roots = classes.of(found.sides["1", "out"]).tolist()
    assert roots[:2] == roots[2:]
    assert ("1", "in") in found.mixed


def test_hooks_are_gone_after_a_failure() -> None:
    def fails(net, x):
        net.a(x)
        raise RuntimeError("no")

    model = Wired(fails, a=nn.Conv2d(3, 4, 1))
    with pytest.raises(RuntimeError, match="no"), evaluation_state(model):
        follow(model, X)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_tied_layers_name_each_other() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert tied_layers(model) == {"0": "2", "2": "0"}


def test_groups_that_cannot_lose_a_share_go_as_a_whole() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    found = found_in(
        nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    )
    assert found.channels.classes().of(found.sides["1", "in"]).tolist() == [1] * 4 + [5] * 4
    assert ("1", "in") not in found.mixed


def test_a_layer_under_two_names_is_not_tied_but_two_layers_of_one_tensor_are() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model.again = nn.Sequential(*model.children())
    assert tied_layers(model) == {}
    model.other = nn.Linear(3, 3)
    model.other.bias = model.again[1].bias
    assert tied_layers(model) == {"1": "other", "other": "1"}
