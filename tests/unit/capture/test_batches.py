import pytest
import torch

from acsp_lightning.capture.batches import check_labels, read_batch

X, Y = torch.rand(4, 2), torch.arange(4)


@pytest.mark.parametrize(
    "batch",
    [(X, Y), [X, Y]] + [{i: X, t: Y, "name": "n"} for i in ("image", "x") for t in ("label", "y")],
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
        (torch.eye(4, dtype=torch.int64), r"Labels have shape \(4, 4\) \(one-hot"),
        (torch.tensor(3), r"Labels have shape \(\)"),
        (torch.tensor([0, -100]), "Labels contain -100"),
    ],
)
def test_other_labels(labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_labels(labels)
