from collections.abc import Iterator

import pytest
import torch
from helpers.fits import conv_net, hooks, same_state, snapshot
from torch import Tensor, nn

from acsp_lightning.structure.batchnorm import recalibrate_batchnorm


def batches(sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 1, 6, 6, generator=generator) * (i + 1) for i, size in enumerate(sizes)]


def test_statistics_are_the_mean_over_the_batches() -> None:
    model, data = conv_net(dropout=0.5).train(), batches([5, 5, 5, 5])
    model.bn1.running_mean.fill_(7.0)
    model.bn1.momentum = None
    recalibrate_batchnorm(model, iter(data), 3)
    with torch.no_grad():
        outputs = [model.conv1(batch).movedim(1, 0).flatten(1) for batch in data[:3]]
    means = torch.stack([values.mean(1) for values in outputs])
    variances = torch.stack([values.var(1) for values in outputs])
    assert torch.allclose(model.bn1.running_mean, means.mean(0), atol=1e-6)
    assert torch.allclose(model.bn1.running_var, variances.mean(0), atol=1e-5)
    assert model.bn1.momentum is None
    assert model.bn2.momentum == 0.1
    assert all(module.training for module in model.modules())
    assert hooks(model) == 0


def test_only_running_statistics_change() -> None:
    model = conv_net(dropout=0.5)
    before = snapshot(model)
    recalibrate_batchnorm(model, batches([4, 4]), 2)
    changed = {name for name, tensor in snapshot(model).items() if not torch.equal(tensor, before[name])}
    statistics = ("running_mean", "running_var")
    assert {name for name in changed if not name.endswith("num_batches_tracked")} == {
        f"{layer}.{statistic}" for layer in ("bn1", "bn2") for statistic in statistics
    }


def test_fewer_batches_than_asked_for_are_averaged() -> None:
    model, same = conv_net(), conv_net()
    recalibrate_batchnorm(model, batches([4, 4]), 100)
    recalibrate_batchnorm(same, batches([4, 4]), 2)
    assert torch.equal(model.bn2.running_var, same.bn2.running_var)


def test_no_batch_changes_nothing() -> None:
    model = conv_net()
    before = snapshot(model)
    recalibrate_batchnorm(model, [], 3)
    assert same_state(snapshot(model), before)


def test_layers_frozen_in_eval_mode_and_without_statistics() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False)
    )
    model[1].eval()
    recalibrate_batchnorm(model, batches([4]), 1)
    assert model[1].running_mean.tolist() == [0.0, 0.0]
    assert not model[1].training
    assert model[2].training


def test_a_failure_leaves_modes_and_momenta_as_they_were() -> None:
    def failing() -> Iterator[Tensor]:
        yield batches([4])[0]
        raise RuntimeError("the disk is gone")

    model = conv_net().train()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        recalibrate_batchnorm(model, failing(), 2)
    assert model.bn1.momentum == model.bn2.momentum == 0.1
    assert all(module.training for module in model.modules())
    assert hooks(model) == 0
