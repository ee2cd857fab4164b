"""Small images that are held in memory and augmented a batch at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImagesInMemory", "batches_of", "split_off"]

Batch = tuple[Tensor, Tensor]

# Of RGB in [0, 1], over ImageNet's training set: torchvision's weights and public CIFAR checkpoints of
# the ResNet family were trained with them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImagesInMemory(Dataset[Batch]):
    """Images of one size, normalised on access, with an optional random crop and flip.

    An index returns one image, a list of indices a batch, which :func:`batches_of` uses: one gather
    crops and flips the whole batch. Random numbers come from torch's global generator.

    Args:
        images: uint8, shape (N, channels, H, W).
        labels: int64, shape (N,).
        mean: mean of every channel, for images scaled to [0, 1].
        std: standard deviation of every channel, likewise.
        padding: number of black pixels added on each side before a random crop to H x W and a
            horizontal flip with probability 1/2, drawn for each image. None: no augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        padding: int | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.padding = padding

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Batch of the images at ``indices``: float32 (B, channels, H, W) and int64 (B,)."""
        images = self.images[indices]
        if self.padding is not None:
            images = _shift_and_mirror(images, self.padding)
        return (images.float() / 255 - self.mean) / self.std, self.labels[indices]


def _shift_and_mirror(images: Tensor, padding: int) -> Tensor:
    """Crop and flip each image of a batch (B, channels, H, W) at random."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1))
    mirrored = torch.rand(count, 1) < 0.5
    across = torch.arange(width).expand(count, -1)
    rows = top + torch.arange(height)
    columns = left + torch.where(mirrored, width - 1 - across, across)
    padded = functional.pad(images, (padding, padding, padding, padding))
    image = torch.arange(count).view(-1, 1, 1)
    # The slice between the index tensors moves the channels to the end.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches_of(images: ImagesInMemory, batch_size: int, shuffle: bool = False) -> DataLoader[Batch]:
    """A loader over ``images``; no worker processes, since nothing is read or decoded.

    Args:
        images: images to load.
        batch_size: images per batch, at least 1; the last batch may be smaller.
        shuffle: a new order every epoch.
    """
    return DataLoader(images, batch_size=batch_size, shuffle=shuffle, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch


def split_off(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split images at random into two parts, stratified by class.

    Args:
        labels: int64, shape (N,).
        share: share of every class in the second part, in (0, 1), rounded to whole images, but at least
            one in either part.
        seed: seed of the split, and of nothing else.

    Returns:
        Indices of the first and of the second part, int64, each ascending.

    Raises:
        ValueError: if the share is not in (0, 1), or a class has a single image.
    """
    if not 0 < share < 1:
        raise ValueError(f"The share to split off is {share}; it must lie between 0 and 1, such as 0.1.")
    generator = torch.Generator().manual_seed(seed)
    second = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(
                f"Class {label} has a single image, which cannot both train and validate. Add "
                "images, or validate on a folder of their own."
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        second[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~second).nonzero().flatten(), second.nonzero().flatten()
