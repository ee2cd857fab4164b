"""Layers and networks in ONNX Runtime: the same as in torch, and timed."""

import pytest
import torch
from helpers.fits import same_state, snapshot
from torch import nn

from acsp_lightning import LatencyAt
from acsp_lightning.export.onnx_times import (
    compare_exported,
    exported_layers,
    onnxruntime,
    time_exported_layers,
)
from acsp_lightning.measure.layer_times import Call
from acsp_lightning.selection.clock import FEWEST_PASSES


def call(*shape):
    return Call(shape, torch.float32, channels_last=False)


def test_sessions_compute_what_their_layers_do():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    layers = [
        (nn.Conv2d(4, 6, 3, padding=1), call(2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, padding=1), call(2, 4, 8, 8)),
        (nn.Conv2d(4, 4, 3, groups=4, stride=2), call(1, 4, 9, 9)),
        (norm, call(2, 4, 8, 8)),
        (nn.Linear(5, 3), call(2, 5)),
        (nn.LayerNorm(5), call(2, 5)),
    ]
    layers = [(layer.eval(), at) for layer, at in layers]
    runs = list(exported_layers(layers))
    assert len(runs) == len(layers)
    for run, (layer, at) in zip(runs, layers, strict=True):
        value = torch.randn(at.shape)
        (found,) = run((value,))
        torch.testing.assert_close(found, layer(value).detach())


def test_a_layer_with_256_times_the_products_takes_longer():
    small, large = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1)
    layers = [(small, call(1, 8, 32, 32)), (large, call(1, 128, 32, 32))]
    one, other = time_exported_layers([(layer.eval(), at) for layer, at in layers], 0.1)
    assert 0 < 2 * one < other


def test_networks_are_timed_in_turns_and_left_as_they_were():
    wide, thin = (
        nn.Sequential(nn.Conv2d(3, n, 3, padding=1), nn.ReLU(), nn.Conv2d(n, n, 3)) for n in (64, 2)
    )
    before = snapshot(wide)
    found = compare_exported(wide, thin, (torch.rand(2, 3, 32, 32),), LatencyAt(batch_size=2), 0.05)
    assert found.speedup > 2
    assert found.before.batch_size == 2
    assert found.before.device == "onnxruntime on cpu"
    assert min(found.before.runs, found.after.runs) >= FEWEST_PASSES
    assert wide.training
    assert same_state(snapshot(wide), before)


def test_what_cannot_be_exported_is_refused():
    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Deciding cannot be exported to onnx"):
        compare_exported(Deciding(), nn.Identity(), (torch.rand(2, 3),), LatencyAt(), 0.0)


def test_the_runtime_has_its_version():
    import onnxruntime as package

    assert onnxruntime().name == f"onnxruntime {package.__version__}"
