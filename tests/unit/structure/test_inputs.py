import pytest
import torch

from acsp_lightning.structure.inputs import of_batch_size, varied


@pytest.mark.parametrize(("size", "rows"), [(1, [0]), (3, [0, 1, 2]), (7, [0, 1, 2, 0, 1, 2, 0])])
def test_batches_of_another_size_repeat_their_samples(size: int, rows: list[int]) -> None:
    images, mask, scale = torch.arange(6.0).reshape(3, 2), torch.arange(3), torch.ones(2)
    (found, named, factor, word) = of_batch_size((images, {"mask": mask}, scale, "a"), size)
    assert torch.equal(found, images[rows])
    assert torch.equal(named["mask"], mask[rows])
    assert factor is scale
    assert word == "a"


def test_constant_images_become_noise_and_others_stay() -> None:
    other, whole = torch.arange(4.0), torch.ones(4, dtype=torch.int64)
    zeros, found, numbers = varied((torch.zeros(4, 4), other, whole))
    assert zeros.unique().numel() == 16
    assert found is other
    assert numbers is whole
