from pathlib import Path

import pytest
import torch
from helpers import image_files
from torchvision.datasets import CIFAR10

from acsp_lightning.zoo import CIFARDataModule


@pytest.mark.parametrize("num_classes", [10, 100])
def test_parts_of_the_official_files(num_classes: int, tmp_path: Path, monkeypatch) -> None:
    root = image_files.write_cifar(tmp_path, num_classes, monkeypatch)
    data = CIFARDataModule(root, num_classes, batch_size=20, val_share=0.25, download=True)
    data.prepare_data()
    data.setup("fit")
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert [sum(len(labels) for _, labels in loader) for loader in loaders] == [90, 30, 12]
    for loader in loaders:
        images, labels = next(iter(loader))
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == {0, 1, 2}


def test_images_are_those_of_torchvision_normalised_as_imagenet(tmp_path: Path, monkeypatch) -> None:
    root = image_files.write_cifar(tmp_path, 10, monkeypatch)
    data = CIFARDataModule(root, batch_size=12)
    (images, labels), = data.test_dataloader()  # fmt: skip
    official = CIFAR10(root, train=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.tensor(official.data).float() / 255 - mean) / std
    assert torch.allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert labels.tolist() == official.targets
    assert torch.equal(next(iter(data.predict_dataloader()))[0], images)


def test_only_training_images_are_augmented(tmp_path: Path, monkeypatch) -> None:
    data = CIFARDataModule(image_files.write_cifar(tmp_path, 10, monkeypatch))
    first, again = (torch.cat([images for images, _ in data.val_dataloader()]) for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(0)
    train = torch.cat([images for images, _ in data.train_dataloader()])
    black = (0 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    edges = train[:, :, 0].permute(0, 2, 1)  # the topmost row of pixels
    share = torch.isclose(edges, black).all(2).all(1).float().mean()
    assert 0.25 < share < 0.65  # four of nine places leave black at the top


def test_the_seed_alone_decides_what_validates(tmp_path: Path, monkeypatch) -> None:
    root = image_files.write_cifar(tmp_path, 10, monkeypatch)

    def validation(seed: int) -> torch.Tensor:
        return torch.cat([x for x, _ in CIFARDataModule(root, seed=seed).val_dataloader()])

    assert torch.equal(validation(3), validation(3))
    assert not torch.equal(validation(3), validation(4))


def test_a_missing_folder_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no whole CIFAR-100: .*download=True"):
        CIFARDataModule(tmp_path / "none", num_classes=100).setup("fit")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
    ],
)
def test_half_a_data_set_is_told_before_training(tmp_path: Path, monkeypatch, damage) -> None:
    root = image_files.write_cifar(tmp_path, 10, monkeypatch)
    damage(root / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(FileNotFoundError, match="'cifar-10-batches-py' is missing or damaged"):
        CIFARDataModule(root).setup("fit")


def test_checksums_are_verified(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        root = image_files.write_cifar(tmp_path, 10, patched)
    with pytest.raises(FileNotFoundError, match="missing or damaged"):
        CIFARDataModule(root).setup("fit")


def test_a_failed_download_is_told_with_what_to_do(tmp_path: Path, monkeypatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(ConnectionError, match=r"CIFAR-10 could not be downloaded .*service not known"):
        CIFARDataModule(tmp_path, download=True).prepare_data()


def test_a_download_that_is_not_the_archive(tmp_path: Path, monkeypatch) -> None:
    def save_page(url: str, filename: str) -> None:
        Path(filename).write_text("<html>Please log in</html>")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", save_page)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    with pytest.raises(ConnectionError, match=r"CIFAR-10 could not be downloaded .*corrupted"):
        CIFARDataModule(tmp_path, download=True).prepare_data()


def test_nothing_is_fetched_unless_wanted(tmp_path: Path) -> None:
    CIFARDataModule(tmp_path).prepare_data()
    assert not list(tmp_path.iterdir())


def test_there_is_no_third_cifar() -> None:
    with pytest.raises(ValueError, match="num_classes is 20"):
        CIFARDataModule(num_classes=20)  # type: ignore[arg-type]
