import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers import captured
from helpers.fits import conv_net, val_loader

from acsp_lightning.capture.batches import (
    check_labels,
    count_classes,
    rare_classes,
    read_batch,
    read_labelled,
    survey,
)

X, Y = torch.rand(4, 2), torch.arange(4)
INPUTS, LABELS = ("image", "x", "pixel_values"), ("label", "y", "labels")


@pytest.mark.parametrize(
    "batch",
    [(X, Y), [X, Y]] + [{i: X, t: Y, "name": "n"} for i in INPUTS for t in LABELS],
)
def test_usual_batches(batch: object) -> None:
    inputs, labels = read_batch(batch)
    assert inputs is X
    assert labels is Y


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ((X, Y, Y), "a tuple of 3 items"),
        ([X], "a list of 1 items"),
        (X, "a Tensor"),
        ({"pixels": X, "label": Y}, r"a dict with keys \['label', 'pixels'\]"),
        ({"image": X, "x": X, "y": Y}, r"a dict with keys \['image', 'x', 'y'\]"),
        ({"x": X, "y": Y, "label": Y}, "a dict with keys"),
        ({"pixel_values": X, "x": X, "labels": Y}, "a dict with keys"),
        (None, "a NoneType"),
    ],
)
def test_other_batches_are_described(batch: object, found: str) -> None:
    with pytest.raises(ValueError, match=rf"validation batch that is {found}.*read_batch="):
        read_batch(batch)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_labels(dtype: torch.dtype) -> None:
    found = check_labels(Y.to(dtype))
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "Labels are a list"),
        (Y.float(), r"Labels are torch\.float32 of shape \(4,\)"),
        (Y > 1, r"Labels are torch\.bool of shape \(4,\)"),
        (Y.to(torch.complex64), r"Labels are torch\.complex64"),
        (torch.tensor(3), r"Labels have shape \(\), a single number for the whole batch"),
        (torch.tensor([0, -100]), "Labels contain -100 .*ignored.*leave those without a class out"),
        (torch.tensor([0, -1]), "Labels contain -1 "),
    ],
)
def test_other_labels(labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_labels(labels)


EYE = torch.eye(4)
MASK = torch.zeros(4, 6, 6, dtype=torch.int64)

# Labels that many data sets have, what they are told to be, and what makes classes of them.
MENDED = [
    (Y[:, None], "a column", "labels.squeeze(1)"),
    (Y[:, None].to(torch.uint8), "a column", "labels.squeeze(1)"),
    (Y[:, None].float(), "a column", "labels.squeeze(1).long()"),
    (Y[:, None] > 1, "a column", "labels.squeeze(1).long()"),
    (EYE.long(), "one-hot rows", "labels.argmax(dim=1)"),
    (EYE, "one-hot rows", "labels.argmax(dim=1)"),
    (0.9 * EYE + 0.025, "probabilities", "labels.argmax(dim=1)"),
    (Y.double(), r"torch\.float64", "labels.long()"),
    (Y > 1, r"torch\.bool", "labels.long()"),
]


@pytest.mark.parametrize(("labels", "found", "cure"), MENDED)
def test_the_cure_that_a_message_gives_works(labels: torch.Tensor, found: str, cure: str) -> None:
    with pytest.raises(ValueError, match=rf"{found}.*return {re.escape(cure)} from read_batch=") as told:
        check_labels(labels)
    assert "argmax" not in str(told.value) or "argmax" in cure
    assert check_labels(eval(cure, {"labels": labels})).shape == (4,)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (MASK, r"shape \(4, 6, 6\), a class for every pixel \(a segmentation mask"),
        (MASK[:, None], r"shape \(4, 1, 6, 6\), a class for every pixel"),
        (MASK.float(), "a class for every pixel"),
        (torch.tensor([[1, 1, 0], [0, 1, 0]]), "several for each sample: of multi-label"),
        (torch.tensor([[3, 7], [2, 2]]), "several for each sample"),
        (torch.tensor([[0.2, -1.3], [0.4, 2.0]]), "several for each sample"),
        (torch.tensor([0.5, 1.5]), "targets of a regression have no classes"),
        (torch.tensor([0.0, float("nan")]), "targets of a regression have no classes"),
    ],
)
def test_labels_that_are_no_classes_have_messages_of_their_own(labels: object, found: str) -> None:
    with pytest.raises(ValueError, match=found) as told:
        check_labels(labels)
    assert "argmax" not in str(told.value)
    assert "squeeze" not in str(told.value)


@pytest.mark.parametrize("largest", [100_000, 10**9, 2**62])
@pytest.mark.parametrize("least", [0, 7])
def test_identifiers_are_shown_and_refused(largest: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"Labels contain {largest:,} .*identifier.*0, 1, 2"):
        check_labels(torch.tensor([least, largest]))


def test_as_many_classes_as_any_data_set_has() -> None:
    assert check_labels(torch.tensor([99_999, 0])).tolist() == [99_999, 0]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([], "no sample;"),
        ([3, 3, 3], "only class 3;"),
        ([3], "only class 3;"),
        ([0, 1], "one sample of each of 2 classes;"),
        ([4, 4, 1, 0], "two samples or more of class 4 alone, one of 2 others;"),
    ],
)
def test_fewer_than_two_classes_of_two_samples(labels: list[int], found: str) -> None:
    with pytest.raises(ValueError, match=f"hold {found} .* at least two classes, of two samples each"):
        count_classes(torch.tensor(labels, dtype=torch.int64))


@pytest.mark.parametrize(
    ("labels", "classes", "named"),
    [
        ([0, 0, 2, 2], 3, None),
        ([0, 0, 2, 2, 1], 3, "class 1."),
        ([0, 0, 2, 2, 5], 6, "class 5."),
        ([7, 7, 2, 2, 5, 3], 8, "class 3, 5."),
        ([0, 0, 1, 1, *range(2, 15)], 15, "class 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more."),
    ],
)
def test_rare_classes_are_named(labels: list[int], classes: int, named: str | None) -> None:
    found = torch.tensor(labels)
    assert count_classes(found) == classes
    warning = rare_classes(found)
    assert warning is None if named is None else warning is not None and named in warning


@pytest.mark.parametrize(
    ("reader", "found"),
    [
        (lambda batch: batch[0], "a Tensor"),  # of two samples: no pair either
        (lambda batch: (*batch, None), "a tuple of 3 items"),
        (lambda batch: None, "a NoneType"),
    ],
)
def test_a_reader_that_returns_something_else(reader: Any, found: str) -> None:
    with pytest.raises(
        ValueError, match=rf"read_batch returned {found}; it must return \(inputs, labels"
    ):
        read_labelled(reader, (X[:2], Y[:2]))


def test_a_reader_that_returns_a_list() -> None:
    inputs, labels = read_labelled(list, (torch.ones(2, 3), torch.tensor([1, 0], dtype=torch.int32)))
    assert inputs.shape == (2, 3)
    assert labels.tolist() == [1, 0]
    assert labels.dtype == torch.int64


def test_a_survey_has_all_labels_and_the_first_batch() -> None:
    example, labels = survey(conv_net(), val_loader(17, batch_size=5), read_batch)
    assert torch.equal(labels, captured.LABELS[:17])
    assert example is not None
    (traced,) = example.traced
    assert torch.equal(traced, captured.IMAGES[: len(traced)])


def test_a_survey_of_nothing() -> None:
    example, labels = survey(conv_net(), [], read_batch)
    assert example is None
    assert len(labels) == 0


def test_a_survey_draws_no_random_number() -> None:
    def augmented() -> Any:
        for images, labels in val_loader():
            noise = random.random() + np.random.rand() + torch.rand(1)
            yield images + noise, labels

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    survey(conv_net(), augmented(), read_batch)
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])
