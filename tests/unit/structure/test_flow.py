import pytest
import torch
from torch import nn

from acsp_lightning.structure import operators
from acsp_lightning.structure.flow import Flow
from acsp_lightning.structure.marks import along


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width, self.parts, self.name = 4, (4, 3), "4"
        self.batch_size, self.image_size = 4, [4, 4]
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return x[:, : self.width].split(self.parts, 2) if self.name else x


def carried(body, width: int = 4, **buffers: torch.Tensor):
    """Flow, marks given, and what ``body`` makes of a map whose channels carry them."""
    owner = Owner()
    for name, buffer in buffers.items():
        owner.register_buffer(name, buffer)
    flow = Flow(owner)
    flow.stack.append(("owner", owner))
    with torch.inference_mode():
        x = torch.rand(2, width, 3, 3)
        marks = flow.channels.new(width)
        flow.mark(x, along(marks, 1, x.shape))
        with flow:
            y = body(owner, x)
    return flow, marks, y


def test_what_is_elementwise_carries_marks_on() -> None:
    flow, marks, y = carried(lambda _, x: (x.relu() * 2 + 1).sigmoid())
    assert torch.equal(flow.marks(y)[0, :, 0, 0], marks)


def test_nothing_is_carried_while_suspended() -> None:
    flow, _, _ = carried(lambda _, x: x)
    flow.suspended = True
    with torch.inference_mode():
        x = torch.rand(2, 4)
        flow.mark(x, along(flow.channels.new(4), 1, x.shape))
        with flow:
            assert flow.marks(x.relu()) is None


def test_a_parameter_over_channels_is_touched() -> None:
    flow, marks, y = carried(lambda net, x: x * (1 + net.gamma).exp())
    (touch,) = flow.found.touches
    assert (touch.name, touch.elements.tolist()) == ("gamma", [0, 1, 2, 3])
    assert torch.equal(touch.marks, marks)
    assert flow.marks(y) is not None


def test_a_parameter_that_several_marks_meet_is_touched_loosely() -> None:
    def body(net, x):
        return x.view(2, 2, 2, 3, 3) * net.gamma[:2].view(2, 1, 1) * net.gamma.view(4)[0]

    flow, marks, _ = carried(body)
    (touch,) = flow.found.touches
    assert touch.loose
    assert touch.elements.tolist() == [0, 1, 0, 1]
    assert torch.equal(touch.marks, marks)


def test_sizes_are_numbers_and_entries_of_the_running_module_that_forward_reads() -> None:
    flow, marks, _ = carried(lambda _, x: x)
    assert flow.sized(4, marks)
    assert [(s.owner, s.attribute, s.place) for s in flow.found.sizes] == [
        ("owner", "width", None),
        ("owner", "parts", 0),
    ]
    assert not flow.sized(5, flow.channels.new(5))


@pytest.mark.parametrize(
    "body", [lambda _, x: x.cumsum(1), lambda _, x: torch.einsum("bchw,dc->bdhw", x, torch.rand(3, 4))]
)
def test_what_mixes_channels_pins_them(body) -> None:
    flow, marks, y = carried(body)
    assert flow.channels.classes().reason(1) is None  # a statistic that nobody uses
    flow.use(y)
    classes = flow.channels.classes()
    assert all("mixed" in (classes.reason(int(mark)) or "") for mark in marks)


def test_a_single_number_is_for_the_trial_to_judge() -> None:
    flow, marks, _ = carried(lambda _, x: x.clamp(max=x.amax()))
    assert {flow.channels.classes().reason(int(mark)) for mark in marks} == {None}


def test_a_mixture_that_meets_channels_pins_them() -> None:
    for body in (
        lambda _, x: x - x.mean(1, keepdim=True),
        lambda _, x: x * x.sum((1, 2, 3), keepdim=True),
    ):
        flow, marks, _ = carried(body)
        classes = flow.channels.classes()
        assert all("mixed" in (classes.reason(int(mark)) or "") for mark in marks)


def test_what_a_rule_does_not_understand_stays(monkeypatch) -> None:
    def fails(*_):
        raise IndexError("no")

    monkeypatch.setattr(operators, "rule", lambda _: fails)
    flow, marks, y = carried(lambda _, x: x.flatten(1))
    flow.use(y)
    classes = flow.channels.classes()
    assert all("mixed" in (classes.reason(int(mark)) or "") for mark in marks)
