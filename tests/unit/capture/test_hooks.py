"""Captured statistics against numpy sums over the layers' own saved inputs and outputs."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fits import CLASSES, conv_net, hooks, noisy_images, val_loader
from helpers.saved import Saved, check_moments, positions, uneven
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, TensorDataset

from acsp_lightning.capture.holdout import held_back
from acsp_lightning.capture.hooks import ActivationCapture, _some_positions
from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import reconstruction_map
from acsp_lightning.structure.tracing import trace_groups


def check_products(found: Tensor, rows: np.ndarray) -> None:
    """``rows`` (n, D)."""
    np.testing.assert_allclose(found, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-7)


def capture(model: nn.Module, batches: Any, grid: int | None = None) -> tuple[Activations, Saved]:
    model.eval()
    first = next(iter(batches))[0]
    groups = trace_groups(model, (first[:2],)).groups
    layers = sorted({side.layer for group in groups for side in (*group.producers, *group.consumers)})
    capturing = ActivationCapture(model, groups, grid, num_classes=3)
    capturing.attach()
    saved = Saved(model, layers)
    with torch.no_grad():
        for images, labels in batches:
            capturing.expect(labels)
            model(images)
            capturing.pause()
    capturing.detach()
    return capturing.finish(), saved


LABELS = noisy_images(17, seed=2).tensors[1].numpy()


def test_moments_of_convolution_and_linear_layers() -> None:
    found, saved = capture(conv_net(), uneven())
    assert found.samples == 17
    assert set(found.outputs) == {"conv1", "conv2", "fc1"}
    for name in found.outputs:
        moments = found.moments(name)
        values = positions(np.concatenate(saved.outputs[name]))
        assert moments.num_positions == {"conv1": 36, "conv2": 36, "fc1": 1}[name]
        check_moments(moments, values, LABELS)
    assert (np.concatenate(saved.outputs["conv1"]) < 0).any(), "read before the ReLU"


@pytest.mark.usefixtures("every_position")
def test_input_second_moments_also_after_a_flatten() -> None:
    found, saved = capture(conv_net(), uneven())
    assert set(found.input_moments) == {"conv2", "fc1", "fc2"}
    conv = np.concatenate(saved.inputs["conv2"])
    check_products(found.input_moments["conv2"], np.moveaxis(conv, 1, -1).reshape(-1, 8))
    flat = np.concatenate(saved.inputs["fc1"]).reshape(17, 6, 9)
    check_products(found.input_moments["fc1"], np.moveaxis(flat, 1, -1).reshape(-1, 6))
    check_products(found.input_moments["fc2"], np.concatenate(saved.inputs["fc2"]))


@pytest.mark.parametrize("grid", [1, 2, 4, 5, 100])
def test_grid_is_adaptive_average_pooling(grid: int) -> None:
    found, saved = capture(conv_net(), uneven(), grid)
    for name in ("conv1", "conv2"):
        maps = torch.tensor(np.concatenate(saved.outputs[name]))
        pooled = adaptive_avg_pool2d(maps, min(grid, 6)).numpy()
        check_moments(found.moments(name), positions(pooled), LABELS)
    check_moments(found.moments("fc1"), positions(np.concatenate(saved.outputs["fc1"])), LABELS)


def test_grid_pools_only_the_axes_that_are_longer() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, (1, 5)), nn.Flatten(), nn.Linear(4 * 6 * 2, 3))
    found, saved = capture(net, uneven(), 3)
    maps = torch.tensor(np.concatenate(saved.outputs["0"]))
    check_moments(found.moments("0"), positions(adaptive_avg_pool2d(maps, (3, 2)).numpy()), LABELS)


class Tokens(nn.Module):
    """Rows of an image as tokens through two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.squeeze(1)
        return self.head(self.down(self.up(tokens).relu()).mean(1))


def test_tokens_are_positions() -> None:
    found, saved = capture(Tokens(), uneven())
    assert found.moments("up").num_positions == 6
    for name in ("up", "down"):
        values = positions(np.concatenate(saved.outputs[name]), tokens=True)
        check_moments(found.moments(name), values, LABELS)
    check_products(found.input_moments["down"], np.concatenate(saved.inputs["down"]).reshape(-1, 8))


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_spatial_axes(dims: int) -> None:
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims](1, 4, 3, padding=1)
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 6**dims, 3))
    labels = torch.arange(12) % 3
    batches = [(torch.randn(12, 1, *[6] * dims), labels)]
    found, saved = capture(net, batches, grid=2)
    pool = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[dims](2)
    pooled = pool(torch.tensor(saved.outputs["0"][0])).numpy()
    check_moments(found.moments("0"), positions(pooled), labels.numpy())


def test_a_class_that_comes_late_is_counted() -> None:
    images, labels = noisy_images(18, seed=2).tensors
    order = labels.argsort(stable=True)
    found, saved = capture(conv_net(), DataLoader(TensorDataset(images[order], labels[order]), 6))
    assert found.moments("conv1").count.tolist() == [6, 6, 6]
    values = positions(np.concatenate(saved.outputs["conv1"]))
    check_moments(found.moments("conv1"), values, labels[order].numpy())


def test_nothing_is_gathered_between_pause_and_expect() -> None:
    model = conv_net().eval()
    images, labels = next(iter(val_loader()))
    capturing = ActivationCapture(model, trace_groups(model, (images,)).groups, None, num_classes=3)
    capturing.attach()
    model(images)
    capturing.expect(labels)
    model(images)
    capturing.pause()
    model(images * 100)
    capturing.detach()
    capturing.detach()
    assert hooks(model) == 0
    found = capturing.finish()
    assert found.samples == 6
    assert int(found.moments("conv1").count.sum()) == 6


def test_precise_in_single_precision_with_a_large_mean() -> None:
    """Consumers' sums are in double: a channel of mean 1000 and deviation 0.1 keeps its digits."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.1], [0.1]]))
        net[0].bias.fill_(1000.0)
    labels = torch.arange(3000) % 3
    found, saved = capture(net, [(torch.randn(3000, 1), labels)])
    rows = saved.inputs["1"][0]
    np.testing.assert_allclose(found.input_moments["1"], rows.T @ rows / len(rows), rtol=1e-12)
    values = positions(saved.outputs["0"][0])
    for label in range(3):
        expected = values[labels.numpy() == label]
        np.testing.assert_allclose(
            found.moments("0").m2[label], expected.var(0) * len(expected), rtol=1e-5
        )


def test_input_moments_of_large_maps_are_estimated_without_bias() -> None:
    convolutions = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 3, padding=1)
    net = nn.Sequential(*convolutions, nn.Flatten(1), nn.Linear(768, 3))
    images = torch.randn(4, 2, 24, 16) + torch.linspace(0, 3, 16)  # not alike all over the map
    batch = images, torch.arange(4) % 3
    one, saved = capture(net, [batch])
    assert one.inputs["1"].count == 4 * 3 * 3
    rows = np.moveaxis(saved.inputs["1"][0], 1, -1).reshape(-1, 3)
    truth = rows.T @ rows / len(rows)
    many, _ = capture(net, [batch] * 400)
    np.testing.assert_allclose(many.input_moments["1"], truth, rtol=0.02, atol=0.02 * truth.max())


def test_of_wide_layers_fewer_positions_are_read() -> None:
    for width, positions_read in ((256, 9), (600, 3), (1200, 1)):
        enough = -(-4 * width // (6 * 9))  # batches until there are four vectors for each channel
        net = nn.Sequential(nn.Conv2d(1, width, 1), nn.Conv2d(width, 2, 12), nn.Flatten())
        batch = torch.randn(6, 1, 12, 12), torch.arange(6) % 3
        found, _ = capture(net, [batch] * (enough + 10))
        assert found.inputs["1"].count == 6 * (9 * enough + 10 * positions_read)


@pytest.mark.parametrize("samples", [128, 256])
def test_moments_of_wide_layers_are_never_too_few_to_recover_by(samples: int) -> None:
    """Also where thinned positions of all samples would be about as many as the channels that stay."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 1024, 3), nn.ReLU(), nn.Conv2d(1024, 2, 1), nn.Flatten())
    images = torch.randn(samples, 3, 14, 14)
    found, _ = capture(net, [(x, torch.arange(32) % 3) for x in images.split(32)])

    def rows(x: torch.Tensor) -> torch.Tensor:
        return net[:2](x).detach().double().movedim(1, 0).flatten(1)

    every, fresh, kept = rows(images), rows(torch.randn(16, 3, 14, 14)), torch.arange(0, 1024, 2)

    def error(moments: torch.Tensor) -> float:
        told = reconstruction_map(moments, kept).T @ fresh[kept]
        return float((told - fresh).square().sum() / fresh.square().sum())

    assert error(found.input_moments["2"]) < 2.5 * error(every @ every.T)


@pytest.mark.parametrize("most", [9, 4, 2, 1])
@pytest.mark.parametrize("shape", [(100,), (40, 28), (9, 9, 9)])
def test_every_position_is_as_likely_as_any_other(shape: tuple[int, ...], most: int) -> None:
    maps = torch.arange(math.prod(shape)).view(1, 1, *shape)
    seen = [_some_positions(maps, turn, most).flatten() for turn in range(27_000 // most)]
    assert max(map(len, seen)) <= most
    counts = torch.cat(seen).bincount(minlength=math.prod(shape)).double()
    assert counts.min() > 0.4 * counts.mean()
    assert counts.max() < 1.8 * counts.mean()
    for axis, size in enumerate(shape):
        by_place = counts.view(shape).movedim(axis, 0).reshape(size, -1).sum(1)
        assert by_place.max() < 1.2 * by_place.sum() / size


def test_a_class_that_was_not_announced_is_counted() -> None:
    model = conv_net().eval()
    images, _ = next(iter(val_loader()))
    capturing = ActivationCapture(model, trace_groups(model, (images,)).groups, None, num_classes=2)
    capturing.attach()
    for labels in ([0, 1, 0, 1, 0, 1], [0, 4, 4, 1, 0, 4]):
        capturing.expect(torch.tensor(labels))
        model(images)
    capturing.detach()
    assert capturing.finish().moments("conv1").count.tolist() == [5, 4, 0, 0, 3]


# -- samples held back ---------------------------------------------------------------------------------
def captured_of(model: nn.Module, batches: Any, share: float, num_classes: int = 3) -> Activations:
    groups = trace_groups(model.eval(), (noisy_images(2, seed=3).tensors[0],)).groups
    capturing = ActivationCapture(model, groups, 2, num_classes, share)
    capturing.attach()
    with torch.no_grad():
        for images, labels in batches:
            capturing.expect(labels)
            model(images)
            capturing.pause()
    capturing.detach()
    return capturing.finish()


def captured_rows(batches: list[tuple[Tensor, Tensor]], share: float) -> list[tuple[Tensor, Tensor]]:
    """The batches without what is held back, counted over all of them."""
    kept, start = [], 0
    for images, labels in batches:
        rows = ~held_back(start, len(labels), share)
        start += len(labels)
        kept.append((images[rows], labels[rows]))
    return kept


def assert_alike(found: Activations, expected: Activations, layer: str) -> None:
    """Equal but for rounding: sums over more rows at once may be taken in another order."""
    assert found.samples == expected.samples
    mine, theirs = found.moments(layer), expected.moments(layer)
    assert torch.equal(mine.count, theirs.count)
    torch.testing.assert_close(mine.mean, theirs.mean)
    torch.testing.assert_close(mine.m2, theirs.m2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_what_is_held_back_leaves_no_trace(size: int, share: float) -> None:
    """In the sums of outputs and inputs, however the samples are batched."""
    model, (images, labels) = conv_net(), noisy_images(40, seed=2).tensors
    batches = list(zip(images.split(size), labels.split(size), strict=True))
    found = captured_of(model, batches, share)
    expected = captured_of(model, captured_rows(batches, share), 0.0)
    assert found.samples == int((~held_back(0, 40, share)).sum())
    for layer in ("conv1", "conv2", "fc1"):
        assert_alike(found, expected, layer)
    for layer, moments in expected.inputs.items():
        assert found.inputs[layer].count == moments.count
        torch.testing.assert_close(found.inputs[layer].total, moments.total)


def test_what_is_not_finite_in_a_sample_held_back_does_no_harm() -> None:
    model, (images, labels) = conv_net(), noisy_images(40, seed=2).tensors
    batches = list(zip(images.split(7), labels.split(7), strict=True))
    expected = captured_of(model, batches, 0.5)
    spoilt = images.clone()
    spoilt[held_back(0, 40, 0.5)] = torch.nan
    found = captured_of(model, zip(spoilt.split(7), labels.split(7), strict=True), 0.5)
    for layer in ("conv1", "conv2", "fc1"):
        assert_alike(found, expected, layer)
    assert all(moments.total.isfinite().all() for moments in found.inputs.values())
    spoilt = images.clone()
    spoilt[(~held_back(0, 40, 0.5)).nonzero()[0]] = torch.nan
    with pytest.raises(ValueError, match="gave NaN or infinite activations"):
        captured_of(model, zip(spoilt.split(7), labels.split(7), strict=True), 0.5)


def test_a_capture_of_samples_held_back_alone_is_empty() -> None:
    images, labels = noisy_images(1, seed=2).tensors
    assert captured_of(conv_net(), [(images, labels)], 1.0).samples == 0


def test_captures_of_our_own_pass_over_the_same_samples() -> None:
    model, (images, labels) = conv_net(), noisy_images(40, seed=2).tensors
    groups = trace_groups(model.eval(), (images[:2],)).groups
    capturing = ActivationCapture(model, groups, 2, 3, 0.5)
    capturing.attach()
    for x, y in zip(images.split(7), labels.split(7), strict=True):
        capturing.run((x,), y)
    capturing.detach()
    batches = list(zip(images.split(7), labels.split(7), strict=True))
    assert_alike(capturing.finish(), captured_of(model, batches, 0.5), "conv2")
