from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import conv_net, hooks, same_state, snapshot, val_loader
from torch import Tensor, nn

from acsp_lightning.capture.batches import read_batch
from acsp_lightning.capture.samples import collect_inputs
from acsp_lightning.measure.accuracy import count_correct
from acsp_lightning.structure.batchnorm import recalibrate_batchnorm


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


def labelled(sizes: list[int], side: int = 2, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Images that show their number."""
    numbers = torch.arange(start, start + sum(sizes)).float()
    images = numbers.view(-1, 1, 1, 1).expand(-1, 1, side, side)
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(sizes)]


def collected(data: Any, samples: int, model: nn.Module | None = None) -> Any:
    return collect_inputs(model or nn.Identity(), data, read_batch, samples)


def numbers(inputs: Any) -> list[int]:
    (images,) = inputs
    assert images.shape[1:] == (1, 2, 2)
    return images[:, 0, 0, 0].int().tolist()


@pytest.mark.parametrize("samples", [12, 13, 100])
def test_all_samples_where_there_are_no_more(samples: int) -> None:
    assert numbers(collected(labelled([4, 5, 3]), samples)) == list(range(12))


@pytest.mark.parametrize("total", [13, 24, 25, 47, 100, 257])
@pytest.mark.parametrize("samples", [1, 2, 5, 12])
def test_samples_are_spread_over_all_batches(samples: int, total: int) -> None:
    found = numbers(collected(labelled([7] * (total // 7) + [total % 7]), samples))
    assert len(found) == samples
    assert found[0] == 0
    if samples > 1:
        # Evenly, but for steps that are rounded, and an end that is cut off.
        steps = torch.tensor(found).diff() * samples / total
        assert steps.min() > 0.4
        assert steps.max() < 2
        assert found[-1] >= total - 2 * total / samples


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64])
def test_how_the_batches_are_split_does_not_matter(size: int) -> None:
    run_on_all_ranks = numbers(collected(labelled([100]), 6))
    assert numbers(collected(labelled([size] * (100 // size) + [100 % size]), 6)) == run_on_all_ranks


def test_no_batch_gives_no_inputs() -> None:
    assert collected([], 8) is None


def test_batches_of_another_size_are_passed_over() -> None:
    data = [*labelled([3]), *labelled([4], side=7), *labelled([2], start=3)]
    assert numbers(collected(data, 100)) == [0, 1, 2, 3, 4]
    assert numbers(collected(data, 2)) == [0, 4]


def test_inputs_of_several_tensors_and_what_is_no_tensor() -> None:
    """A dict is one argument, unless the example says that forward takes names."""
    labels = torch.zeros(3, dtype=torch.int64)
    inputs = {"a": torch.randn(3, 2), "mode": "fast"}
    data = [(inputs, labels), ({**inputs, "a": inputs["a"] + 1}, labels)]
    (found,) = collected(data, 6)
    assert torch.equal(found["a"], torch.cat([inputs["a"], inputs["a"] + 1]))
    assert found["mode"] == "fast"

    class Named(nn.Module):
        example_input_array = {"mode": "slow", "a": torch.zeros(1, 2)}  # noqa: RUF012 (as Lightning has it)

        def forward(self, a: Tensor, mode: str) -> Tensor:
            return a

    tensor, mode = collected(data, 6, Named())
    assert torch.equal(tensor, found["a"])
    assert mode == "fast"


def test_several_arguments_stay_in_step() -> None:
    class Two(nn.Module):
        example_input_array = (torch.zeros(1, 2), torch.zeros(1))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a

    values = torch.arange(40.0)
    data = [((v[:, None].expand(-1, 2), v), v.long()) for v in values.split(7)]
    first, second = collected(data, 6, Two())
    assert len(first) == 6
    assert first[:, 0].tolist() == second.tolist()


def test_collecting_leaves_the_batches_alone() -> None:
    (images, labels), *_ = data = labelled([4])
    before = images.clone()
    (inputs,) = collected(data, 4)
    inputs.zero_()
    assert torch.equal(images, before)
    assert len(labels) == 4
