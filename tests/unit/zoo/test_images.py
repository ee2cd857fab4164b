import pytest
import torch

from acsp_lightning.zoo.images import ImagesInMemory, batches_of, split_off

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def numbered(count: int, side: int = 8) -> torch.Tensor:
    """Images none of whose pixels are alike, or black."""
    pixels = torch.arange(1, 3 * side * side + 1).view(3, side, side)
    return ((pixels + torch.arange(count).view(-1, 1, 1, 1)) % 250 + 1).to(torch.uint8)


def test_images_are_scaled_and_normalised() -> None:
    images = numbered(4)
    held = ImagesInMemory(images, torch.arange(4), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    image, label = held[2]
    assert label == 2
    assert image.dtype == torch.float32
    for channel, (mean, std) in enumerate([(0.5, 0.1), (0.4, 0.2), (0.3, 0.3)]):
        expected = (images[2, channel].double() / 255 - mean) / std
        assert torch.allclose(image[channel].double(), expected, atol=1e-5)


def test_batches_are_the_images_in_order() -> None:
    images = ImagesInMemory(numbered(7), torch.arange(7), **PLAIN)
    batches = list(batches_of(images, batch_size=3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(7))
    assert torch.allclose(torch.cat([images for images, _ in batches]) * 255, numbered(7).float())


def test_shuffled_batches_come_in_a_new_order_every_epoch() -> None:
    torch.manual_seed(0)
    loader = batches_of(ImagesInMemory(numbered(50), torch.arange(50)), 50, shuffle=True)
    (first,), (second,) = ([labels.tolist() for _, labels in loader] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_augmented_images_are_crops_of_the_padded_image_or_its_mirror_image() -> None:
    torch.manual_seed(0)
    images = numbered(1).expand(400, -1, -1, -1)
    held = ImagesInMemory(images, torch.zeros(400, dtype=torch.int64), **PLAIN, padding=1)
    found = (held.__getitems__(list(range(400)))[0] * 255).round().to(torch.uint8)
    padded = torch.zeros(3, 10, 10, dtype=torch.uint8)
    padded[:, 1:9, 1:9] = images[0]
    crops = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    allowed = torch.stack([*crops, *(crop.flip(2) for crop in crops)])
    which = (found[:, None] == allowed[None]).flatten(2).all(2)
    assert (which.sum(1) == 1).all()
    # Each of the 18 is as likely as any other, image by image: 22 of 400 on average.
    counts = which.sum(0)
    assert counts.min() > 5
    assert counts.max() < 45


def test_augmentation_leaves_the_images_in_memory_alone() -> None:
    images = numbered(5)
    held = ImagesInMemory(images.clone(), torch.zeros(5, dtype=torch.int64), padding=2)
    held.__getitems__([0, 1, 2, 3, 4])
    assert torch.equal(held.images, images)


def test_a_split_takes_its_share_of_every_class() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 3).roll(7)
    first, second = split_off(labels, 0.25, seed=0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(63))
    assert labels[second].bincount().tolist() == [10, 5, 1]


def test_the_seed_alone_decides_the_split() -> None:
    labels = torch.arange(100) % 4
    torch.manual_seed(1)
    one = split_off(labels, 0.2, seed=3)[1]
    torch.manual_seed(2)
    assert torch.equal(split_off(labels, 0.2, seed=3)[1], one)
    assert not torch.equal(split_off(labels, 0.2, seed=4)[1], one)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_parts_hold_every_class(share: float) -> None:
    labels = torch.arange(9) % 3
    for part in split_off(labels, share, seed=0):
        assert labels[part].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        split_off(torch.arange(9) % 3, share, seed=0)


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="Class 2 has a single image"):
        split_off(torch.tensor([0, 0, 1, 1, 2]), 0.5, seed=0)
