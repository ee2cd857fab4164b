import torch
from helpers.fits import conv_net, same_state, snapshot, val_loader
from torch import Tensor, nn

from acsp_lightning.capture.batches import read_batch
from acsp_lightning.measure.accuracy import count_correct


def fixed_logits() -> nn.Module:
    """Logits are the inputs."""
    return nn.Identity()


def test_accuracy_by_hand_over_uneven_batches() -> None:
    right = torch.eye(3)
    batches = [(right, torch.tensor([0, 1, 2])), (right[:2], torch.tensor([1, 1]))]
    assert count_correct(fixed_logits(), batches, read_batch) == (4, 5)


def test_accuracy_where_there_is_none() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    assert count_correct(fixed_logits(), [], read_batch) == (0, 0)
    for other in (torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, 3, 4), {"logits": labels}):
        assert count_correct(fixed_logits(), [(other, labels)], read_batch) is None


def test_accuracy_runs_in_eval_mode_and_leaves_the_model_alone() -> None:
    model = conv_net(dropout=0.9).train()
    before = snapshot(model)
    first = count_correct(model, val_loader(), read_batch)
    assert first == count_correct(model, val_loader(), read_batch)
    assert same_state(snapshot(model), before)
    assert all(module.training for module in model.modules())


def batches(sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 1, 6, 6, generator=generator) * (i + 1) for i, size in enumerate(sizes)]
