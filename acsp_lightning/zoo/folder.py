"""Images in one folder per class."""

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from acsp_lightning.zoo.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
    ImagesInMemory,
    batches_of,
    split_off,
)

__all__ = ["ImageFolderDataModule"]

Sample = tuple[str, int]
Split = Literal["train", "val", "test"]


class ImageFolderDataModule(pl.LightningDataModule):
    """Images in ``root/train/CLASS/NAME.png``, and in folders like ``train`` for the other splits.

    Batches are ``(images, labels)``: float32 of shape (B, 3, size, size), RGB in [0, 1], normalised
    with ``mean`` and ``std``, and int64 of shape (B,): the index of the class's folder in alphabetical
    order. Folders, classes and images are checked before training starts.

    With ``augmentation="resized_crop"``, as usual for ImageNet, training images get a random resized
    crop and a random horizontal flip; the others are resized to 8/7 ``size`` and center-cropped. Images
    are decoded on access.

    With ``augmentation="padded_crop"``, as usual for CIFAR, all images must be ``size`` x ``size`` and
    are held in memory; training images get black padding of an eighth of the size, a random crop and a
    random horizontal flip.

    Args:
        root: folder that holds the folders of the splits.
        train: folder of the training images.
        val: folder of the validation images; None: a share ``val_share`` of every class of the training
            images.
        test: folder of the test images, also used for prediction; None: the validation images.
        size: height and width of the network's input, in pixels, at least 1.
        augmentation: "resized_crop" or "padded_crop".
        batch_size: images per batch, at least 1.
        val_share: with ``val=None``, the share for validation, in (0, 1).
        num_workers: worker processes that decode, at least 0; unused if images are in memory.
        check_images: number of images of every split, drawn at random, that are decoded before training
            as a check; None: all. An image that does not decode later stops the training; the error
            names it.
        mean: mean of every channel.
        std: standard deviation of every channel.
        seed: seed of the split and of the check, and of nothing else.

    Raises:
        ValueError: if ``augmentation`` is neither of the two.
    """

    def __init__(
        self,
        root: str | Path,
        train: str = "train",
        val: str | None = "val",
        test: str | None = None,
        size: int = 224,
        augmentation: Literal["resized_crop", "padded_crop"] = "resized_crop",
        batch_size: int = 128,
        val_share: float = 0.1,
        num_workers: int = 0,
        check_images: int | None = 10_000,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if augmentation not in ("resized_crop", "padded_crop"):
            raise ValueError(
                f"augmentation is {augmentation!r}; it must be 'resized_crop' or 'padded_crop'."
            )
        self.root = Path(root)
        self.folders: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.size = size
        self.image_shape = (3, size, size)
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.val_share = val_share
        self.num_workers = num_workers
        self.check_images = check_images
        self.mean = mean
        self.std = std
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Find all images and check them, once.

        Raises:
            FileNotFoundError: if a folder is missing, or a class has no image.
            ValueError: if splits have different classes, or an image does not decode or, for
                "padded_crop", has another size.
        """
        _ = self._datasets

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self._found["train"].classes)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images, augmented, in a new order every epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation images, in fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images, in fixed order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test images, in fixed order."""
        return self._loader("test")

    def _loader(self, split: Split, shuffle: bool = False) -> DataLoader[Batch]:
        images = self._datasets[split]
        if isinstance(images, ImagesInMemory):
            return batches_of(images, self.batch_size, shuffle)
        return DataLoader(
            images,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    @cached_property
    def _found(self) -> dict[Split, ImageFolder]:
        found = {
            split: _class_folders(self.root, folder)
            for split, folder in self.folders.items()
            if folder is not None
        }
        for split in found:
            _check_same_classes(self.folders["train"], found["train"], self.folders[split], found[split])
        return found

    @cached_property
    def _samples(self) -> dict[Split, list[Sample]]:
        samples = {split: folder.samples for split, folder in self._found.items()}
        if "val" not in samples:
            labels = torch.tensor(self._found["train"].targets)
            train, val = split_off(labels, self.val_share, self.seed)
            everything = samples["train"]
            samples["train"] = [everything[place] for place in train.tolist()]
            samples["val"] = [everything[place] for place in val.tolist()]
        samples.setdefault("test", samples["val"])
        return samples

    @cached_property
    def _datasets(self) -> dict[Split, "ImagesInMemory | _FolderImages"]:
        if self.augmentation == "padded_crop":
            return {split: self._in_memory(split) for split in self._samples}
        for samples in self._samples.values():
            _check_decoding(samples, self.check_images, self.seed)
        return {
            split: _FolderImages(samples, self._transform(split))
            for split, samples in self._samples.items()
        }

    def _in_memory(self, split: Split) -> ImagesInMemory:
        samples = self._samples[split]
        images = torch.empty((len(samples), 3, self.size, self.size), dtype=torch.uint8)
        for place, (path, _) in enumerate(samples):
            image = decode(path)
            if image.size != (self.size, self.size):
                raise ValueError(
                    f"{path} has {image.width} x {image.height} pixels; with augmentation='padded_crop' "
                    f"all images must have size x size, {self.size} x {self.size}. Use 'resized_crop'."
                )
            images[place] = v2.functional.pil_to_tensor(image)
        labels = torch.tensor([label for _, label in samples])
        padding = self.size // 8 if split == "train" else None
        return ImagesInMemory(images, labels, self.mean, self.std, padding)

    def _transform(self, split: Split) -> v2.Transform:
        if split == "train":
            crop = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()]
        else:
            crop = [v2.Resize(self.size * 8 // 7), v2.CenterCrop(self.size)]
        scaled = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        return v2.Compose([*crop, *scaled, v2.Normalize(list(self.mean), list(self.std))])


class _FolderImages(Dataset[Any]):
    """Decodes images on access."""

    def __init__(self, samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(decode(path)), label


def decode(path: str) -> Image.Image:
    """Read an image from a file, as RGB.

    Raises:
        ValueError: if the file does not hold a whole image; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise exceptions of any type
        raise ValueError(
            f"{path} does not decode as an image: {error}. Restore or remove the file."
        ) from error


def _check_decoding(samples: Sequence[Sample], at_most: int | None, seed: int) -> None:
    if at_most is not None and at_most < len(samples):
        samples = random.Random(seed).sample(samples, at_most)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release the GIL
        for _ in pool.map(lambda sample: decode(sample[0]).size, samples):
            pass


def _class_folders(root: Path, folder: str) -> ImageFolder:
    place = root / folder
    for needed in (root, place):
        if not needed.is_dir():
            raise FileNotFoundError(
                f"There is no folder {needed.absolute()}{_beside(needed)}. Images are looked for in "
                f"{root / folder}/CLASS/; set root, train, val and test."
            )
    if not any(entry.is_dir() for entry in place.iterdir()):
        raise FileNotFoundError(
            f"{place} has no class folders. Images are looked for in {place}/CLASS/."
        )
    found = ImageFolder(place, allow_empty=True)
    counts = torch.bincount(torch.tensor(found.targets, dtype=torch.int64), minlength=len(found.classes))
    empty = [name for name, count in zip(found.classes, counts.tolist(), strict=True) if count == 0]
    if empty:
        raise FileNotFoundError(
            f"No image in {_some(empty)} of {place}. Every class folder must hold at least one file "
            "that ends in .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff or .webp; add images, or "
            "remove the folder."
        )
    return found


def _beside(missing: Path) -> str:
    if not missing.parent.is_dir():
        return ""
    folders = sorted(entry.name for entry in missing.parent.iterdir() if entry.is_dir())
    return f" (beside it: {_some(folders)})" if folders else ""


def _check_same_classes(
    name: str | None, found: ImageFolder, other_name: str | None, other: ImageFolder
) -> None:
    only, other_only = (
        sorted(set(a.classes) - set(b.classes)) for a, b in ((found, other), (other, found))
    )
    if only or other_only:
        differences = [
            f"only {place!r} has {_some(classes)}"
            for place, classes in ((name, only), (other_name, other_only))
            if classes
        ]
        raise ValueError(
            f"The classes in {name!r} and {other_name!r} differ: {' and '.join(differences)}. Labels "
            "are ranks among the class folders, so all parts need the same ones."
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
