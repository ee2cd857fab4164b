"""Names of classes are found where data modules, loaders and datasets keep them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from acsp_lightning.capture.class_names import class_names

ANIMALS = ("bear", "cat", "dog")


class Animals(Dataset[int]):
    """As torchvision's data sets have them."""

    classes = ANIMALS

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


class Unwilling:
    """Raises when it is asked."""

    @property
    def classes(self) -> Any:
        raise RuntimeError("prepare_data comes first")


@pytest.mark.parametrize(
    "source",
    [
        Animals(),
        DataLoader(Animals()),
        DataLoader(Subset(Animals(), [0, 1])),
        DataLoader(ConcatDataset([Animals(), Animals()])),
        [DataLoader(Animals())],
        {"clean": DataLoader(Animals())},
        CombinedLoader({"clean": DataLoader(Animals())}, "max_size"),
        SimpleNamespace(class_names=ANIMALS),
        SimpleNamespace(classes={1: "cat", 0: "bear", 2: "dog"}),
    ],
)
def test_names_are_found(source: Any) -> None:
    assert class_names(source) == ANIMALS


def test_the_first_source_with_names_counts() -> None:
    assert class_names(None, Unwilling(), Animals(), SimpleNamespace(classes=["x", "y"])) == ANIMALS


@pytest.mark.parametrize(
    "source",
    [
        None,
        Unwilling(),
        DataLoader(TensorDataset(torch.zeros(2))),
        SimpleNamespace(classes="abc"),  # one text is no list of names
        SimpleNamespace(classes={"bear": 0}),
        SimpleNamespace(classes=[object(), object()]),
    ],
)
def test_what_has_no_names_has_none(source: Any) -> None:
    assert class_names(source) == ()
