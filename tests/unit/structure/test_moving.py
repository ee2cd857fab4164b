import pytest
import torch
from torch.nn import functional
from unit.structure.test_flow import carried
from unit.structure.test_operators import classes_of, reasons


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.flatten(2).transpose(1, 2),
        lambda x: x.permute(2, 0, 3, 1),
        lambda x: x.flip(1),
        lambda x: x.repeat(1, 2, 1, 1),
        lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1, -1),
        lambda x: torch.cat([x[:, :2], x[:, 2:]], 1),
        lambda x: functional.pixel_unshuffle(x.repeat(1, 1, 2, 2), 2),
        lambda x: x.roll(1, 2),
        lambda x: x.flatten(2).reshape_as(x),
        lambda x: x.flatten(2).view_as(torch.empty(2, 4, 9)),
        lambda x: x[:, :, 0, [1, 2]],
    ],
)
def test_marks_move_as_values_do(body) -> None:
    """The value of a channel is its mark, wherever the operator puts it."""
    flow, marks, y = carried(lambda _, x: body(x))
    values = body(marks.view(1, 4, 1, 1).expand(2, 4, 3, 3).to(torch.float64))
    assert torch.equal(flow.marks(y).to(torch.float64), values)


def test_channels_that_a_view_splits_go_by_their_place_in_the_last_part() -> None:
    flow, marks, _ = carried(lambda _, x: x.view(2, 2, 2, 3, 3))
    assert classes_of(flow, marks) == [1, 2, 1, 2]


def test_shuffled_channels_go_by_their_place_in_a_group() -> None:
    flow, marks, y = carried(lambda _, x: functional.channel_shuffle(x, 2))
    assert classes_of(flow, marks) == [1, 2, 1, 2]
    assert flow.marks(y)[0, :, 0, 0].tolist() == [1, 3, 2, 4]


def test_a_view_that_takes_up_the_batch_splits_the_other_way() -> None:
    flow, marks, _ = carried(lambda _, x: x.reshape(4, 2, 9))
    assert classes_of(flow, marks) == [1, 1, 3, 3]


def test_equal_parts_lose_the_same_places() -> None:
    for body in (
        lambda x: x.chunk(2, 1),
        lambda x: x.split(2, 1),
        lambda x: (x[:, :2], x[:, 2:]),
        lambda x: torch.tensor_split(x, 2, dim=1),
    ):
        flow, marks, _ = carried(lambda _, x, body=body: body(x))
        assert classes_of(flow, marks) == [1, 2, 1, 2]
        assert reasons(flow, marks) == {None}


def test_numbers_in_the_code_keep_what_they_count() -> None:
    flow, marks, _ = carried(lambda _, x: x[:, :1], width=7)
    assert [flow.channels.classes().reason(int(m)) is None for m in marks] == [False] + [True] * 6
    flow, marks, _ = carried(lambda _, x: x[:, -1:], width=7)
    assert [flow.channels.classes().reason(int(m)) is None for m in marks] == [True] * 6 + [False]
    for body in (lambda x: x[:, ::2], lambda x: x[:, 1], lambda x: x[:, [0, 2]], lambda x: x.roll(1, 1)):
        flow, marks, _ = carried(lambda _, x, body=body: body(x))
        assert all("number" in reason for reason in reasons(flow, marks))


def test_attributes_count_parts() -> None:
    flow, marks, _ = carried(lambda net, x: x.split(net.parts, 1), width=7)
    counted = {(s.attribute, s.place): s.marks.tolist() for s in flow.found.sizes}
    assert counted["parts", 0] == [1, 2, 3, 4]
    assert counted["parts", 1] == [5, 6, 7]
    assert reasons(flow, marks) == {None}


def test_pads_around_channels_stay() -> None:
    flow, marks, y = carried(lambda _, x: functional.pad(x, (1, 1, 1, 1, 1, 2)))
    padded = flow.marks(y)[0, :, 0, 0]
    assert torch.equal(padded[1:5], marks)
    assert reasons(flow, marks) == {None}
    assert None not in reasons(flow, torch.cat([padded[:1], padded[5:]]))


def test_tensors_made_like_others_shrink_with_them() -> None:
    flow, marks, y = carried(lambda _, x: x.new_zeros(x.shape) + x)
    assert torch.equal(flow.marks(y)[0, :, 0, 0], marks)
    assert reasons(flow, marks) == {None}
