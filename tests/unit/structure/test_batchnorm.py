from collections.abc import Iterator

import pytest
import torch
from helpers.fits import conv_net, hooks, same_state, snapshot
from torch import Tensor, nn

from acsp_lightning.structure.batchnorm import (
    match_batchnorm,
    matched_layers,
    measure_batchnorm,
    recalibrate_batchnorm,
)


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


def shrunken() -> nn.Module:
    """As after a refit: what the layers are given varies less than their statistics say."""
    torch.manual_seed(0)
    model = conv_net().eval()
    with torch.no_grad():
        for norm in matched_layers(model).values():
            norm.running_var *= 4
            norm.running_mean += 0.3
            norm.weight += torch.rand_like(norm.weight)
            norm.bias -= torch.rand_like(norm.bias)
    return model


def test_statistics_become_those_of_the_inputs_and_outputs_stay() -> None:
    model, data = shrunken(), [(batch,) for batch in batches([8, 8, 5])]
    images = torch.cat([images for (images,) in data])
    with torch.no_grad():
        expected, given = model(images), model.conv1(images).movedim(1, 0).flatten(1)
    match_batchnorm(model, measure_batchnorm(model, data))
    torch.testing.assert_close(model.bn1.running_mean, given.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.bn1.running_var, given.var(1, correction=0), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
        # In train mode the statistics of the batch are those of the samples.
        torch.testing.assert_close(model.train()(images), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(shrunken().train()(images), expected, rtol=1e-1)


def test_measuring_leaves_no_trace() -> None:
    model = conv_net(dropout=0.5).train()
    before = snapshot(model)
    found = measure_batchnorm(model, [(batch,) for batch in batches([4, 4])])
    assert set(found) == {"bn1", "bn2"}
    assert same_state(snapshot(model), before)
    assert hooks(model) == 0
    assert model.training


def test_layers_that_cannot_make_up_for_other_statistics_keep_theirs() -> None:
    layers = {
        "own": nn.BatchNorm1d(2),
        "no scale": nn.BatchNorm1d(2, affine=False),
        "no statistics": nn.BatchNorm1d(2, track_running_stats=False),
        "tied": nn.BatchNorm1d(2),
        "too": nn.BatchNorm1d(2),
    }
    layers["too"].weight = layers["tied"].weight
    assert list(matched_layers(nn.ModuleDict(layers))) == ["own"]


def test_values_that_are_not_finite_change_nothing() -> None:
    model = conv_net()
    before = snapshot(model)
    match_batchnorm(model, measure_batchnorm(model, [(torch.full((2, 1, 6, 6), float("nan")),)]))
    assert same_state(snapshot(model), before)
