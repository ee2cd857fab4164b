import torch
from torch import Tensor
from torch.utils.data import DataLoader

from acsp_lightning.zoo import DigitsDataModule


def whole(loader: DataLoader[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def parts(data: DigitsDataModule) -> list[tuple[Tensor, Tensor]]:
    return [
        whole(loader)
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_batches_are_scaled_images_with_labels() -> None:
    images, labels = next(iter(DigitsDataModule(batch_size=7).train_dataloader()))
    assert images.shape == (7, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1
    assert labels.dtype == torch.int64


def test_parts_do_not_overlap_and_cover_everything() -> None:
    train, val, test = (images for images, _ in parts(DigitsDataModule()))
    assert [len(train), len(val), len(test)] == [1077, 360, 360]
    # No two of the bundled images are alike, so an image names itself.
    assert len(rows(torch.cat([train, val, test]))) == 1797


def test_every_class_has_its_share_in_every_part() -> None:
    for _, labels in parts(DigitsDataModule()):
        shares = torch.bincount(labels, minlength=10) / len(labels)
        assert (shares - 0.1).abs().max() < 0.005


def test_the_seed_alone_decides_the_split() -> None:
    torch.manual_seed(1)
    first, again, other = (whole(DigitsDataModule(seed=seed).val_dataloader())[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert rows(first) != rows(other)


def test_prediction_runs_over_the_test_part() -> None:
    data = DigitsDataModule()
    assert torch.equal(whole(data.predict_dataloader())[0], whole(data.test_dataloader())[0])
