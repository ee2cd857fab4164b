import torch

from acsp_lightning.structure.channels import Channels


def test_marks_are_new_and_positive() -> None:
    channels = Channels()
    one, other = channels.new(3), channels.new(2)
    assert one.tolist() == [1, 2, 3]
    assert other.tolist() == [4, 5]


def test_ties_make_classes() -> None:
    channels = Channels()
    marks = channels.new(6)
    assert channels.tie(marks[:2], marks[2:4])
    assert channels.tie(marks[2:3], marks[5:])
    assert not channels.tie(marks, marks)
    assert not channels.tie(marks[:1], torch.zeros(1, dtype=torch.int64))
    assert channels.classes().of(marks).tolist() == [1, 2, 1, 2, 5, 1]


def test_ties_along_a_dimension_pass_over_what_is_no_channel() -> None:
    channels = Channels()
    marks = channels.new(6).view(2, 3).clone()
    marks[0, 1] = 0
    channels.tie_along(marks, 1)
    roots = channels.classes().of(marks)
    assert roots.tolist() == [[1, 0, 1], [4, 4, 4]]


def test_the_first_reason_counts_for_a_whole_class() -> None:
    channels = Channels()
    marks = channels.new(4)
    channels.pin(marks[1:2], "first")
    channels.pin(marks, "second")
    channels.tie(marks[:1], marks[1:2])
    classes = channels.classes()
    assert [classes.reason(int(root)) for root in classes.of(marks)] == ["first", "first"] + [
        "second"
    ] * 2


def test_sums_count_for_a_whole_class() -> None:
    channels = Channels()
    marks = channels.new(3)
    channels.add(marks[1:2])
    channels.tie(marks[:1], marks[1:2])
    classes = channels.classes()
    assert [classes.is_summed(int(root)) for root in classes.of(marks)] == [True, True, False]
