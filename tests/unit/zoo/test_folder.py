from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import image_files
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional

from acsp_lightning.zoo import ImageClassifier, ImageFolderDataModule

SMALL: dict[str, Any] = {"size": 32, "augmentation": "padded_crop"}
BOTH = [SMALL, {"size": 16}]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Training, validation and test images, 32x32, three classes."""
    for seed, (part, each) in enumerate([("train", 6), ("val", 2), ("test", 3)]):
        image_files.write_folder(tmp_path / part, each=each, seed=10 * seed)
    return tmp_path


def whole(loader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def normalised(path: Path) -> Tensor:
    image = functional.to_tensor(Image.open(path))
    return functional.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize("options", BOTH, ids=lambda options: f"size {options['size']}")
def test_parts_are_the_folders(tree: Path, options) -> None:
    data = ImageFolderDataModule(tree, test="test", batch_size=4, **options)
    data.setup("fit")
    assert data.num_classes == 3
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    for loader, each in zip(loaders, (6, 2, 3), strict=True):
        images, labels = whole(loader)
        assert images.shape == (3 * each, 3, options["size"], options["size"])
        assert images.dtype == torch.float32
        assert labels.bincount().tolist() == [each] * 3
    assert torch.equal(whole(data.predict_dataloader())[0], whole(data.test_dataloader())[0])


def test_small_images_are_not_resized(tree: Path) -> None:
    images, labels = whole(ImageFolderDataModule(tree, **SMALL).val_dataloader())
    paths = [tree / "val" / name / f"{n}.png" for name in image_files.CLASSES for n in range(2)]
    assert torch.allclose(images, torch.stack([normalised(path) for path in paths]), atol=1e-5)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_large_images_are_cropped_in_the_middle(tmp_path: Path) -> None:
    for part in ("train", "val"):
        image_files.write_folder(tmp_path / part, each=1, side=64)
    data = ImageFolderDataModule(tmp_path, size=56)  # resized to 64, which they are: no resampling
    images, _ = whole(data.val_dataloader())
    expected = normalised(tmp_path / "val" / "bear" / "0.png")[:, 4:60, 4:60]
    assert torch.allclose(images[1], expected, atol=1e-5)


@pytest.mark.parametrize("options", BOTH, ids=lambda options: f"size {options['size']}")
def test_only_training_images_are_augmented(tree: Path, options) -> None:
    torch.manual_seed(0)
    data = ImageFolderDataModule(tree, batch_size=100, **options)
    for loader, varies in ((data.train_dataloader(), True), (data.val_dataloader(), False)):
        first, second = (whole(loader)[0].flatten(1).sum(1).sort().values for _ in range(2))
        assert torch.equal(first, second) is not varies


def test_without_a_validation_folder_a_share_of_the_training_images_validates(tree: Path) -> None:
    data = ImageFolderDataModule(tree, val=None, val_share=0.5, **SMALL)
    assert len(data.train_dataloader().dataset) == 9  # type: ignore[arg-type]
    images, labels = whole(data.val_dataloader())
    assert labels.bincount().tolist() == [3, 3, 3]
    training = {normalised(path).numpy().tobytes() for path in (tree / "train").glob("*/*.png")}
    assert {image.numpy().tobytes() for image in images} <= training
    # And without a test folder they test.
    assert torch.equal(whole(data.test_dataloader())[0], images)
    other = ImageFolderDataModule(tree, val=None, val_share=0.5, seed=1, **SMALL)
    assert not torch.equal(whole(other.val_dataloader())[0], images)


def test_grey_images_and_palettes_become_rgb(tree: Path) -> None:
    image = Image.open(tree / "train" / "bear" / "0.png")
    image.convert("L").save(tree / "train" / "bear" / "grey.png")
    image.convert("P").save(tree / "train" / "bear" / "palette.png")
    assert whole(ImageFolderDataModule(tree, **SMALL).train_dataloader())[0].shape[1] == 3


# -- what is not as it should be ---------------------------------------------------------------------


def refused(root: Path, error: type[Exception], match: str, **options: Any) -> None:
    """In setup already, and whatever the augmentation."""
    for kind in BOTH:
        with pytest.raises(error, match=match):
            ImageFolderDataModule(root, **{**kind, **options}).setup("fit")


def test_a_missing_root(tmp_path: Path) -> None:
    refused(tmp_path / "none", FileNotFoundError, r"There is no folder .*none")


def test_a_missing_part(tree: Path) -> None:
    match = r"no folder .*validation \(beside it: 'test', 'train', 'val'\)"
    refused(tree, FileNotFoundError, match, val="validation")


def test_a_part_without_class_folders(tree: Path) -> None:
    (tree / "flat").mkdir()
    (tree / "flat" / "0.png").write_bytes((tree / "train" / "cat" / "0.png").read_bytes())
    refused(tree, FileNotFoundError, "flat has no class folders", test="flat")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_empty_class_folder(tree: Path, part: str) -> None:
    for image in (tree / part / "bear").iterdir():
        image.rename(image.with_suffix(".txt"))
    refused(tree, FileNotFoundError, rf"No image in 'bear' of .*{part}", test="test")


def test_classes_that_differ_between_parts(tree: Path) -> None:
    (tree / "val" / "bear").rename(tree / "val" / "wolf")
    refused(tree, ValueError, "only 'train' has 'bear' and only 'val' has 'wolf'")


def test_a_class_that_is_missing_from_validation(tree: Path) -> None:
    for image in (tree / "val" / "cat").iterdir():
        image.unlink()
    (tree / "val" / "cat").rmdir()
    refused(tree, ValueError, "'train' and 'val' differ: only 'train' has 'cat'")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no image"),
    ],
)
def test_a_image_that_does_not_decode(tree: Path, damage) -> None:
    damage(tree / "val" / "bear" / "1.png")
    refused(tree, ValueError, r"bear.1\.png does not decode as an image")


def test_a_image_that_was_not_checked_is_named_when_it_comes_up(tree: Path) -> None:
    for image in (tree / "val" / "bear").iterdir():
        image.write_bytes(b"no image")
    data = ImageFolderDataModule(tree, size=16, check_images=0)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"bear.0\.png does not decode as an image"):
        list(data.val_dataloader())


def test_images_of_another_size_than_promised(tree: Path) -> None:
    Image.new("RGB", (40, 30)).save(tree / "train" / "cat" / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png has 40 x 30 pixels; .* 32 x 32"):
        ImageFolderDataModule(tree, **SMALL).setup("fit")


def test_an_unknown_augmentation(tree: Path) -> None:
    with pytest.raises(ValueError, match="augmentation is 'none'"):
        ImageFolderDataModule(tree, augmentation="none")  # type: ignore[arg-type]


def test_more_classes_than_the_network_has(tree: Path, make_trainer) -> None:
    module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), num_classes=2)
    trainer: pl.Trainer = make_trainer()
    with pytest.raises(ValueError, match=r"has 3 classes, .*num_classes=2"):
        trainer.fit(module, datamodule=ImageFolderDataModule(tree, **SMALL))
    assert trainer.global_step == 0
