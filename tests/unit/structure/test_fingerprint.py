import copy
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from acsp_lightning import apply_plan
from acsp_lightning.structure.fingerprint import fingerprint
from acsp_lightning.structure.plan import PruningPlan, SideCut


@dataclass
class Options:
    depth: int = 2


class Net(nn.Module):
    """Has about everything that a forward may depend on, and a metric."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
        self.gain = nn.Parameter(torch.zeros(4, 1, 1))
        self.register_buffer("order", torch.arange(4))
        self.accuracy = MulticlassAccuracy(4)
        self.depth, self.widths, self.options = 2, [6, 4], Options()
        self.table, self.named = {"a": (1, {2})}, Namespace(wide=False)
        self.act = torch.relu
        self.steps = 0

    def forward(self, x):
        x = self.body(x)[:, self.order] * self.gain
        return self.act(x) if self.is_plain() else x

    def is_plain(self):
        return self.depth == 2 and self.widths and not self.named.wide and self.options and self.table

    def training_step(self):
        self.steps += 1


def of(model: nn.Module):
    return fingerprint(model, passed_over=(Metric,))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def train(net: Net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
    net.train()
    x = torch.randn(4, 3, 8, 8)
    net(x).sum().backward()
    optimizer.step()
    net.accuracy(torch.randn(4, 4), torch.arange(4))
    net.training_step()
    net.eval()


def load(net: Net) -> None:
    net.load_state_dict(Net().state_dict())


def freeze(net: Net) -> None:
    net.requires_grad_(False)


def hook_and_unhook(net: Net) -> None:
    net.body[0].register_forward_hook(lambda *_: None).remove()


@pytest.mark.parametrize(
    "change", [train, load, freeze, hook_and_unhook, lambda net: net.double().float()]
)
def test_what_training_and_loading_do_leaves_it(net: Net, change: Callable[[Net], object]) -> None:
    before = of(net)
    assert before == of(net)
    change(net)
    assert of(net) == before


def cut(net: Net) -> None:
    plan = [SideCut("body.0", "out", 6, (0, 2)), SideCut("body.1", "out", 6, (0, 2))]
    apply_plan(net, PruningPlan((*plan, SideCut("body.3", "in", 6, (0, 2)))))


def swap(net: Net) -> None:
    net.body[2] = nn.GELU()


def swap_for_one_alike(net: Net) -> None:
    net.body[3] = copy.deepcopy(net.body[3])


def add(net: Net) -> None:
    net.body.append(nn.Identity())


def remove(net: Net) -> None:
    del net.body[2]


def rename(net: Net) -> None:
    net.tail = net.body
    del net.body


def tie(net: Net) -> None:
    net.body[3].bias = net.gain  # of another shape; what counts is that it is the same


def tie_alike(net: Net) -> None:
    net.body[1].bias = net.body[1].weight


def parametrize(net: Net) -> None:
    parametrizations.weight_norm(net.body[0])


def hook(net: Net) -> None:
    net.body[0].register_forward_hook(lambda *_: None)


def replace_method(net: Net) -> None:
    net.body.forward = MethodType(lambda self, x: self[0](x), net.body)


def replace_method_of_class(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "forward", lambda net, x: net.body(x))


def permute(net: Net) -> None:
    net.order.copy_(torch.tensor([3, 2, 1, 0]))


def wake(net: Net) -> None:
    with torch.no_grad():
        net.gain.fill_(0.5)


CHANGES: dict[str, Callable[[Net], object]] = {
    "cut": cut,
    "swap": swap,
    "swap for one alike": swap_for_one_alike,
    "add": add,
    "remove": remove,
    "rename": rename,
    "tie": tie,
    "tie alike": tie_alike,
    "parametrize": parametrize,
    "hook": hook,
    "method": replace_method,
    "permute": permute,
    "a scale is no longer zero": wake,
    "type": lambda net: net.double(),
    "stride": lambda net: setattr(net.body[0], "stride", (2, 2)),
    "integer": lambda net: setattr(net, "depth", 3),
    "kind of number": lambda net: setattr(net, "depth", 2.0),
    "list": lambda net: net.widths.append(3),
    "set in a dict": lambda net: net.table["a"][1].add(5),
    "record": lambda net: setattr(net.options, "depth", 3),
    "namespace": lambda net: setattr(net.named, "wide", True),
    "function": lambda net: setattr(net, "act", torch.tanh),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_forward_may_depend_on_changes_it(net: Net, change: str) -> None:
    before = of(net)
    CHANGES[change](net)
    assert of(net) != before


def test_another_forward_of_the_class(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(net)
    replace_method_of_class(net, monkeypatch)
    assert of(net) != before


def test_a_change_that_is_taken_back(net: Net) -> None:
    before = of(net)
    weights = [net.body[n].weight.data for n in (0, 1, 3)]
    state = {key: value for key, value in net.state_dict().items()}
    cut(net)
    assert of(net) != before
    net.body[0].weight.data, net.body[1].weight.data, net.body[3].weight.data = weights
    net.body[0].bias.data, net.body[1].bias.data = state["body.0.bias"], state["body.1.bias"]
    net.body[1].running_mean, net.body[1].running_var = (
        state[f"body.1.running_{n}"] for n in ("mean", "var")
    )
    net.body[0].out_channels = net.body[1].num_features = net.body[3].in_channels = 6
    assert of(net) == before


def test_another_network_alike(net: Net) -> None:
    assert of(copy.deepcopy(net)) != of(net)


def test_lists_without_end_and_lazy_layers(net: Net) -> None:
    net.widths.append(net.widths)
    net.lazy = nn.LazyLinear(3)
    net.long = list(range(100_000))
    assert of(net) == of(net)
