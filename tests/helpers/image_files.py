"""Made-up images on disk, in the formats that the recipes read."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, cifar

CLASSES = ("apple", "bear", "cat")


def images(labels: Sequence[int], side: int, seed: int) -> np.ndarray:
    """A pattern for each class, 4x4 patches of colour, under noise; uint8, (count, side, side, 3)."""
    patterns = np.random.default_rng(99).integers(0, 192, (max(labels) + 1, 4, 4, 3))
    patterns = patterns.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    noise = np.random.default_rng(seed).integers(0, 64, (len(labels), side, side, 3))
    return (patterns[list(labels)] + noise).astype(np.uint8)


def write_folder(
    root: Path, classes: Sequence[str] = CLASSES, each: int = 4, side: int = 32, seed: int = 0
) -> Path:
    """``root/CLASS/NUMBER.png``, ``each`` images of every class."""
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number, pixels in enumerate(images([place] * each, side, seed + place)):
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def write_cifar(root: Path, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as in the official archives: 120 training and 12 test images of three classes in turn.

    Checksums are the one thing that made-up images cannot have.
    """
    ten = num_classes == 10
    source = CIFAR10 if ten else CIFAR100
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    files = [(name, 120 // len(source.train_list)) for name, _ in source.train_list]
    for seed, (name, count) in enumerate([*files, (source.test_list[0][0], 12)]):
        labels = [place % 3 for place in range(count)]
        # Planes of red, green and blue, row by row.
        pixels = images(labels, 32, seed).transpose(0, 3, 1, 2).reshape(count, 3072)
        batch = {"data": pixels, "labels" if ten else "fine_labels": labels}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"class{place}" for place in range(num_classes)]
    (folder / source.meta["filename"]).write_bytes(
        pickle.dumps({"label_names" if ten else "fine_label_names": names})
    )
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    return root
