import math

import pytest
import torch

from acsp_lightning.structure.marks import along, none_of, pressed, resized, split_dims, thin, varying


def test_a_vector_lies_along_one_dimension() -> None:
    marks = along(torch.arange(1, 4), 1, (2, 3, 5))
    assert marks.shape == (2, 3, 5)
    assert varying(marks) == [1]
    assert marks[0, :, 0].tolist() == [1, 2, 3]


def test_pressing_finds_what_stays_the_same() -> None:
    marks = along(torch.arange(1, 4), 1, (2, 3, 5)).contiguous()
    assert varying(marks) == [0, 1, 2]
    assert varying(pressed(marks)) == [1]
    assert torch.equal(pressed(marks), marks)
    assert varying(none_of((2, 3))) == []


def test_thin_marks_differ_in_the_same_places() -> None:
    one, other = along(torch.arange(1, 4), 1, (2, 3, 5)), along(torch.arange(1, 6), 2, (2, 3, 5))
    assert [tuple(marks.shape) for marks in thin(one, other)] == [(1, 3, 5), (1, 3, 5)]


def test_resized_marks_keep_those_that_differ() -> None:
    marks = resized(along(torch.arange(1, 4), 1, (2, 3, 5)), (2, 3, 9))
    assert marks.shape == (2, 3, 9)
    assert marks[1, :, 8].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        ((2, 6, 4), (2, 2, 3, 4), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
        ((2, 6, 4), (2, 24), [([0], [0]), ([1, 2], [1])]),
        ((2, 6, 4), (4, 3, 4), [([0, 1], [0, 1]), ([2], [2])]),
        ((2, 3), (2, 3), [([0], [0]), ([1], [1])]),
    ],
)
def test_views_are_split_into_runs(before, after, runs) -> None:
    found = split_dims(before, after)
    assert found == runs
    for left, right in found:
        assert math.prod(before[i] for i in left) == math.prod(after[j] for j in right)
