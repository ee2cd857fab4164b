"""Scikit-learn's handwritten digits: a data set that needs no download."""

from functools import cached_property

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

__all__ = ["DigitsDataModule"]

_BRIGHTEST = 16.0
_HELD_OUT = 360


class DigitsDataModule(pl.LightningDataModule):
    """The 1797 bundled digits in ten classes, 8x8 pixels, one channel.

    Batches are ``(images, labels)``: float32 of shape (B, 1, 8, 8) in [0, 1], and int64 of shape (B,)
    in [0, 10). There are 1077 images for training, 360 for validation and 360 for testing, stratified
    by class. Prediction uses the test images.

    Args:
        batch_size: images per batch, at least 1.
        num_workers: worker processes. 0 is fastest: all images are in memory.
        seed: seed of the split, and of nothing else.
    """

    num_classes = 10
    image_shape = (1, 8, 8)

    def __init__(self, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    @cached_property
    def _parts(self) -> dict[str, Subset[tuple[Tensor, ...]]]:
        pixels, classes = load_digits(return_X_y=True)
        images = torch.tensor(pixels / _BRIGHTEST, dtype=torch.float32).reshape(-1, 1, 8, 8)
        labels = torch.tensor(classes, dtype=torch.int64)
        fit, test = train_test_split(
            range(len(classes)), test_size=_HELD_OUT, stratify=classes, random_state=self.seed
        )
        train, val = train_test_split(
            fit, test_size=_HELD_OUT, stratify=classes[fit], random_state=self.seed
        )
        digits = TensorDataset(images, labels)
        parts = {"train": train, "val": val, "test": test}
        return {name: Subset(digits, indices) for name, indices in parts.items()}

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The training images, in a new order every epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The validation images, in fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The test images, in fixed order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The test images, in fixed order."""
        return self._loader("test")

    def _loader(self, part: str, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            self._parts[part],
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
        )
