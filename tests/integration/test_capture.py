"""What a fit captures, against numpy sums over the layers' own saved inputs and outputs."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import fits
from helpers.fits import Classifier, Fit, callback, noisy_images, snapshot, val_loader
from helpers.saved import Saved, check_moments, positions, uneven
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from acsp_lightning import SelectionConfig, pipeline
from acsp_lightning.capture.statistics import Activations


def spied(fit: Fit, monkeypatch: pytest.MonkeyPatch, module: Any, pruning: Any, **options: Any) -> Any:
    """What the callback captured, and the state of the module that it captured."""
    caught: dict[str, Any] = {}
    weigh = pipeline.weigh_groups

    def spy(model: nn.Module, groups: Any, activations: Activations, *args: Any, **kwargs: Any) -> Any:
        caught.update(activations=activations, state=snapshot(model))
        return weigh(model, groups, activations, *args, **kwargs)

    monkeypatch.setattr(pipeline, "weigh_groups", spy)
    fit(module, [pruning], **options)
    return caught["activations"], caught["state"]


def replay(state: dict[str, Tensor], batches: Any) -> tuple[Saved, np.ndarray]:
    module = Classifier()
    module.load_state_dict(state)
    saved = Saved(module.eval(), ["net.conv1", "net.conv2", "net.fc1"])
    labels = []
    for images, label in batches:
        module(images)
        labels.append(label.numpy())
    return saved, np.concatenate(labels)


def test_the_whole_validation_is_captured(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    pruning = callback(1, selection=SelectionConfig(keep=0.5, grid=None))
    found, state = spied(fit, monkeypatch, Classifier(), pruning, val=uneven())
    saved, labels = replay(state, uneven())
    assert found.samples == 17
    for name in found.outputs:
        moments = found.moments(name)
        check_moments(moments, positions(np.concatenate(saved.outputs[name])), labels)


@pytest.mark.parametrize(
    ("options", "trainer"), [({"max_batches": 2}, {}), ({}, {"limit_val_batches": 2})]
)
def test_fewer_batches(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], trainer: dict[str, Any]
) -> None:
    pruning = callback(selection=SelectionConfig(keep=0.5, grid=None), **options)
    found, state = spied(fit, monkeypatch, Classifier(), pruning, **trainer)
    saved, labels = replay(state, list(val_loader())[:2])
    assert found.samples == pruning.steps[0].samples == 12
    check_moments(found.moments("net.fc1"), positions(np.concatenate(saved.outputs["net.fc1"])), labels)


def test_of_several_loaders_the_first_is_captured(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    pruning = callback(selection=SelectionConfig(keep=0.5, grid=None))
    loaders = [uneven(), DataLoader(noisy_images(12, seed=77), batch_size=4)]
    found, state = spied(fit, monkeypatch, Classifier(), pruning, val=loaders)
    saved, labels = replay(state, uneven())
    assert found.samples == 17
    values = positions(np.concatenate(saved.outputs["net.conv2"]))
    check_moments(found.moments("net.conv2"), values, labels)


def test_bf16_autocast_is_captured_as_it_ran(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    pruning = callback(selection=SelectionConfig(keep=0.5, grid=None))
    found, state = spied(fit, monkeypatch, Classifier(), pruning, precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16):
        saved, labels = replay(state, val_loader())
    values = positions(np.concatenate(saved.outputs["net.conv2"]))
    check_moments(found.moments("net.conv2"), values, labels)
    assert found.moments("net.conv2").mean.dtype == torch.float64


def test_double_precision_is_not_rounded(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    pruning = callback(selection=SelectionConfig(keep=0.5, grid=None))
    found, state = spied(fit, monkeypatch, Classifier(), pruning, precision="64-true")
    module = Classifier().double().eval()
    module.load_state_dict(state)
    images, labels = noisy_images(18, seed=2).tensors
    out = module.net.conv1(images.double()).detach().flatten(2)
    assert torch.allclose(found.moments("net.conv1").mean[0], out[labels == 0].mean(0), rtol=1e-13)


class DictBatches(Classifier):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch.get("image", batch.get("x")))


@pytest.mark.parametrize("keys", [("image", "label"), ("x", "y"), ("image", "y"), ("x", "label")])
def test_batches_that_are_dicts(fit: Fit, keys: tuple[str, str]) -> None:
    pairs = [dict(zip((*keys, "index"), (*b, 7), strict=True)) for b in noisy_images(18, seed=2)]
    pruning = callback()
    fit(DictBatches(), [pruning], val=DataLoader(pairs, batch_size=6))
    assert pruning.steps[0].samples == 18


class AnyLabels(Classifier):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int16])
def test_integer_labels_of_any_width(fit: Fit, dtype: torch.dtype) -> None:
    images, labels = noisy_images(18, seed=2).tensors
    loader = DataLoader(TensorDataset(images, labels.to(dtype)), batch_size=6)
    pruning = callback()
    fit(AnyLabels(), [pruning], val=loader)
    assert pruning.steps[0].samples == 18


def test_transfer_hooks_that_augment_in_training_leave_validation_data_alone(fit: Fit) -> None:
    """Users ask ``self.trainer.training`` in on_after_batch_transfer, as Lightning's pages advise."""

    class Augmented(Classifier):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return (torch.zeros_like(batch[0]), batch[1]) if self.trainer.training else batch

    module, pruning, probe = Augmented(), callback(recovery="none"), fits.Probe()
    fit(module, [pruning, probe])
    whole = Classifier()
    whole.load_state_dict(probe.states["validation_end", 0])
    images, labels = noisy_images(18, seed=2).tensors
    right = (whole.eval()(images).argmax(1) == labels).float().mean().item()
    assert right != pytest.approx(1 / 3)
    assert pruning.steps[0].accuracy_before == pytest.approx(right)
