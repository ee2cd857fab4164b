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
