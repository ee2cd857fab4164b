import pytest
import torch
from torch.nn import functional
from unit.structure.test_flow import carried


def reasons(flow, marks):
    classes = flow.channels.classes()
    return {classes.reason(int(root)) for root in classes.of(marks)}


def classes_of(flow, marks):
    return flow.channels.classes().of(marks).tolist()


def test_a_sum_of_two_tensors_is_one_and_of_the_same_is_none() -> None:
    flow, marks, _ = carried(lambda _, x: x + x.flip(1))
    assert classes_of(flow, marks) == [1, 2, 2, 1]
    assert flow.channels.classes().is_summed(1)
    flow, marks, _ = carried(lambda _, x: x + x.relu())
    assert not flow.channels.classes().is_summed(1)


def test_constants_over_channels_pin_them_and_single_ones_do_not() -> None:
    flow, marks, _ = carried(lambda _, x: x * torch.rand(1, 1, 3, 3) + torch.rand(()))
    assert reasons(flow, marks) == {None}
    flow, marks, _ = carried(lambda _, x: x * torch.rand(4, 1, 1))
    assert reasons(flow, marks) == {"its channels meet a tensor of a size that no cut changes"}


@pytest.mark.parametrize(
    "body",
    [
        lambda x: functional.max_pool2d(x, 2),
        lambda x: functional.adaptive_avg_pool2d(x, 1),
        lambda x: functional.interpolate(x, scale_factor=2),
        lambda x: functional.dropout2d(x),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: torch.max(x, x.relu()),
        lambda x: torch.min(x.relu(), x),
        lambda x: torch.hstack([x.mean(3).mean(2).unsqueeze(1)] * 2).sum(1)[:, :, None, None],
    ],
)
def test_channels_go_on_through_what_changes_positions(body) -> None:
    flow, marks, y = carried(lambda _, x: body(x))
    assert torch.equal(flow.marks(y)[0, :, 0, 0], marks)
    assert classes_of(flow, marks) == marks.tolist()
    assert reasons(flow, marks) == {None}


@pytest.mark.parametrize(
    "body",
    [lambda x: x.softmax(1), lambda x: x.sum(1), lambda x: x.std((1, 2, 3)), lambda x: x.matmul(x)],
)
def test_what_reduces_channels_is_a_mixture_of_them(body) -> None:
    flow, marks, y = carried(lambda _, x: body(x))
    flow.use(y)
    assert all("mixed" in reason for reason in reasons(flow, marks))


def test_questions_pin_nothing() -> None:
    flow, marks, _ = carried(lambda _, x: bool(x.isfinite().all()) and x.shape[1])
    assert reasons(flow, marks) == {None}


def test_batch_norm_as_a_function_meets_its_constants() -> None:
    flow, marks, y = carried(lambda _, x: functional.batch_norm(x, torch.zeros(4), torch.ones(4)))
    assert flow.marks(y) is not None
    assert None not in reasons(flow, marks)


def test_joined_constants_stay() -> None:
    flow, marks, y = carried(lambda _, x: torch.cat([x, torch.zeros(2, 2, 3, 3)], 1))
    joined = flow.marks(y)[0, :, 0, 0]
    assert torch.equal(joined[:4], marks)
    assert reasons(flow, marks) == {None}
    assert None not in reasons(flow, joined[4:])


def test_the_default_dimension_of_an_operator_counts() -> None:
    flow, marks, _ = carried(lambda _, x: x.flatten(2).sort(-1))
    assert reasons(flow, marks) == {None}
    assert classes_of(flow, marks) == marks.tolist()


def test_columns_beside_channels_are_joined_along_the_channels() -> None:
    flow, marks, y = carried(lambda _, x: torch.hstack((x.mean((2, 3)), torch.rand(2, 1))))
    assert torch.equal(flow.marks(y)[0, :4], marks)
    assert reasons(flow, marks) == {None}
    assert None not in reasons(flow, flow.marks(y)[0, 4:])


def test_what_meets_along_two_tensors_is_tied() -> None:
    for body in (
        lambda x: torch.max(*x.split(2, 1)),
        lambda x: functional.glu(x, 1),
        lambda x: functional.glu(x.transpose(1, 3)),
    ):
        flow, marks, _ = carried(lambda _, x, body=body: body(x))
        assert classes_of(flow, marks) == [1, 2, 1, 2]
        assert reasons(flow, marks) == {None}


def test_filters_of_channels_as_a_function() -> None:
    """As a buffer with a filter for each channel, and as one filter for all of them."""

    def body(net, x):
        every = functional.conv2d(x, net.filters, net.shifts, groups=4)
        return functional.conv2d(every, net.filters[:1].expand(4, -1, -1, -1), groups=4)

    flow, marks, y = carried(body, filters=torch.rand(4, 1, 1, 1), shifts=torch.rand(4))
    assert torch.equal(flow.marks(y)[0, :, 0, 0], marks)
    assert reasons(flow, marks) == {None}
    touched = {(t.name, tuple(t.elements.tolist()), tuple(t.marks.tolist())) for t in flow.found.touches}
    every = tuple(marks.tolist())
    assert touched == {("filters", (0, 1, 2, 3), every), ("shifts", (0, 1, 2, 3), every)}
    flow, marks, y = carried(lambda _, x: functional.conv2d(x, torch.rand(4, 2, 1, 1), groups=2))
    flow.use(y)
    assert all("(convolution)" in reason for reason in reasons(flow, marks))
