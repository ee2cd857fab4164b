"""CIFAR-10 and CIFAR-100."""

import pickle
from functools import cached_property
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100

from acsp_lightning.zoo.images import Batch, ImagesInMemory, batches_of, split_off

__all__ = ["CIFARDataModule"]

_PADDING = 4


class CIFARDataModule(pl.LightningDataModule):
    """The 60,000 images of CIFAR-10 or CIFAR-100, 32x32 pixels, three channels.

    Batches are ``(images, labels)``: float32 of shape (B, 3, 32, 32), RGB in [0, 1], normalised with
    ImageNet's mean and standard deviation (as public checkpoints of the ResNet family expect), and
    int64 of shape (B,) in [0, num_classes). A share ``val_share`` of every class of the official
    training set is used for validation, the rest for training, with four black pixels of padding, a
    random crop and a random horizontal flip. The official test set is used for testing and prediction.
    All images are held in memory, about 180 MB.

    Args:
        root: folder that holds, or will hold, the folder ``cifar-10-batches-py`` or
            ``cifar-100-python``.
        num_classes: 10 for CIFAR-10, 100 for CIFAR-100.
        batch_size: images per batch, at least 1.
        val_share: share of the training set for validation, in (0, 1).
        download: download missing files to ``root`` before training.
        seed: seed of the validation split, and of nothing else.

    Raises:
        ValueError: if ``num_classes`` is neither 10 nor 100.
    """

    image_shape = (3, 32, 32)

    def __init__(
        self,
        root: str | Path = "data",
        num_classes: Literal[10, 100] = 10,
        batch_size: int = 128,
        val_share: float = 0.1,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes not in (10, 100):
            raise ValueError(f"num_classes is {num_classes!r}; there are CIFAR-10 and CIFAR-100.")
        self.root = Path(root)
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.val_share = val_share
        self.download = download
        self.seed = seed

    def prepare_data(self) -> None:
        """Download the data set, if ``download`` is set and it is missing.

        Raises:
            ConnectionError: if it cannot be downloaded.
        """
        if not self.download:
            return
        try:
            self._source(self.root, download=True)
        # RuntimeError: the checksum of the archive does not match.
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"CIFAR-{self.num_classes} could not be downloaded to {self.root.absolute()}: {error}. "
                "Unpack the archive there by hand, or name a root that has it."
            ) from error

    def setup(self, stage: str) -> None:
        """Load all images into memory, once.

        Raises:
            FileNotFoundError: if the data set, or a file of it, is missing or damaged.
        """
        _ = self._parts

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images, augmented, in a new order every epoch."""
        return batches_of(self._parts["train"], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation images, in fixed order."""
        return batches_of(self._parts["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The official test set, in fixed order."""
        return batches_of(self._parts["test"], self.batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The official test set, in fixed order."""
        return self.test_dataloader()

    @property
    def _source(self) -> type[CIFAR10]:
        source: type[CIFAR10] = CIFAR10 if self.num_classes == 10 else CIFAR100
        return source

    @cached_property
    def _parts(self) -> dict[str, ImagesInMemory]:
        images, labels = self._official(train=True)
        train, val = split_off(labels, self.val_share, self.seed)
        return {
            "train": ImagesInMemory(images[train], labels[train], padding=_PADDING),
            "val": ImagesInMemory(images[val], labels[val]),
            "test": ImagesInMemory(*self._official(train=False)),
        }

    def _official(self, train: bool) -> Batch:
        try:
            data = self._source(self.root, train=train)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise FileNotFoundError(
                f"{self.root.absolute()} holds no whole CIFAR-{self.num_classes}: a file in "
                f"{self._source.base_folder!r} is missing or damaged. Pass download=True, or name the "
                "folder in which the archive was unpacked."
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(data.targets)
