from functools import cached_property, partial
from operator import attrgetter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from acsp_lightning.structure.mentions import mentioned_attributes


def helper(net):
    return net.seen_by_a_helper


class Base(nn.Module):
    def forward(self, x):
        return self.inner.features(x) + self.seen_by_the_base


class Inner(nn.Module):
    """Has no forward of its own: another module calls a method."""

    def features(self, x):
        return x * self.of_inner if self.limit else x

    @property
    def limit(self):
        return self.behind_a_property

    def step(self):
        self.steps += 1


class Net(Base):
    def forward(self, x):
        if helper(self) or any(self.in_a_generator for _ in range(2)):
            return super().forward(x)
        return self.late if self.width(x) else x

    @staticmethod
    def width(x):
        return x.in_a_static_method

    @cached_property
    def late(self):
        return self.behind_a_cached_property

    def training_step(self, batch):
        self.losses.append(self.forward(batch))


def test_what_any_reached_code_mentions() -> None:
    net = Net()
    net.inner = Inner()
    found = mentioned_attributes(net.modules())
    assert set(found) == {Net, Inner}
    for names in found.values():
        assert names >= {
            "inner",
            "seen_by_a_helper",
            "seen_by_the_base",
            "of_inner",
            "behind_a_property",
            "in_a_generator",
            "in_a_static_method",
            "behind_a_cached_property",
        }
        assert not names & {"losses", "steps"}


class Dynamic(nn.Module):
    def forward(self, x):
        return getattr(self, f"layer{x}")


def reads_anything(net):
    return vars(net)


class Helped(nn.Module):
    def forward(self, x):
        return reads_anything(self)


def test_code_that_reads_by_names_of_the_moment() -> None:
    assert mentioned_attributes([Dynamic(), Inner()])[Dynamic] is None
    assert mentioned_attributes([Dynamic(), Inner()])[Inner] is not None
    assert mentioned_attributes([Helped(), Inner()]) == {Helped: None, Inner: None}


@pytest.mark.parametrize("forward", [torch.relu, nn.ReLU()])
def test_a_forward_that_is_no_function_may_read_anything(forward) -> None:
    net = Inner()
    object.__setattr__(net, "forward", forward)
    assert mentioned_attributes([net]) == {Inner: None}


def test_a_forward_of_the_instance() -> None:
    net = Inner()
    net.forward = lambda x: x * net.scale
    assert "scale" in mentioned_attributes([net])[Inner]


def around(inner):
    def forward(net, x):
        return inner(net, x) + net.by_the_outer

    return forward


class Divider:
    def __call__(self, net, x):
        return x[: net.by_an_object]


class Asked:
    __call__ = attrgetter("by_a_getter")


class Holder(nn.Module):
    """Runs what it holds."""

    def __init__(self, held=None):
        super().__init__()
        self.held = held

    def forward(self, x):
        return self.held(self, x)


@pytest.mark.parametrize(
    ("held", "names"),
    [
        (lambda net, x: x * net.by_a_lambda, {"by_a_lambda"}),
        (partial(lambda net, x, y: x * net.by_a_partial, y=1), {"by_a_partial"}),
        (partial(around, lambda net, x: net.by_an_argument), {"by_an_argument"}),
        (around(lambda net, x: net.by_the_inner), {"by_the_inner", "by_the_outer"}),
        (around(partial(lambda net, x: net.by_the_inner)), {"by_the_inner", "by_the_outer"}),
        (Divider(), {"by_an_object"}),
        (Inner().features, {"of_inner", "limit"}),
    ],
)
def test_what_a_module_holds_is_followed(held, names) -> None:
    found = mentioned_attributes([Holder(held)])[Holder]
    assert found is not None
    assert found >= names
    assert "steps" not in found


@pytest.mark.parametrize(
    "held", [torch.relu, functional.relu, functional.max_pool2d, nn.ReLU, Inner(), np.tanh, None, 3]
)
def test_functions_of_torch_and_modules_read_nothing(held) -> None:
    assert mentioned_attributes([Holder(held)])[Holder] == {"held"}


@pytest.mark.parametrize(
    "held", [attrgetter("width"), Asked(), lambda net, x: getattr(net, x), partial(attrgetter("a"))]
)
def test_a_module_that_holds_what_cannot_be_read_may_read_anything(held) -> None:
    found = mentioned_attributes([Holder(held), Inner()])
    assert found[Holder] is None
    assert found[Inner] is not None


class Logged(pl.LightningModule):
    def forward(self, x):
        self.log("seen", x.to(self.device).log().mean())
        return x * self.hparams.scale if self.trainer.training else x


def test_what_lightning_does_by_itself_reads_nothing_of_the_user() -> None:
    assert mentioned_attributes([Logged()]) == {
        Logged: {"log", "to", "device", "mean", "hparams", "scale", "trainer", "training"}
    }
