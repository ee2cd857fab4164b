"""Accuracies of single classes, against counting by hand."""

from dataclasses import replace

import pytest
import torch
from helpers.records import step

from acsp_lightning.measure.accuracy import ClassCounts
from acsp_lightning.report.classes import class_rows


def counts(right: list[int], seen: list[int]) -> ClassCounts:
    return ClassCounts(torch.tensor(right), torch.tensor(seen))


def test_a_row_for_every_class_that_was_seen() -> None:
    found = replace(
        step(),
        class_names=("bear", "cat", "dog"),
        classes_before=counts([3, 0, 4], [4, 0, 5]),
        classes_after=counts([1, 0, 5], [4, 0, 5]),
    )
    bear, dog = class_rows(found)
    assert (bear.name, bear.samples, bear.before, bear.after) == ("bear", 4, 0.75, 0.25)
    assert (dog.name, dog.samples, dog.after) == ("dog", 5, 1.0)
    assert dog.before == pytest.approx(0.8)
    assert bear.change == -0.5
    assert dog.change == pytest.approx(0.2)
    assert bear.cells() == ("bear", "4", "75.0%", "25.0%", "-50.0")


def test_classes_without_names_have_their_numbers() -> None:
    found = replace(step(), classes_before=counts([1, 1], [2, 2]), classes_after=counts([1, 2], [2, 2]))
    assert [row.name for row in class_rows(found)] == [found.class_name(0), found.class_name(1)]
    assert "1" in found.class_name(1)


def test_without_class_scores_there_is_no_row() -> None:
    assert class_rows(step()) == []
