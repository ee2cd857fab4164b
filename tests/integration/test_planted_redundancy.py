"""A network widened without changing its function: does pruning find the true width again?"""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from acsp_lightning import ACSPPruningCallback, PruningStep, SelectionConfig
from acsp_lightning.zoo import VGG, DigitsDataModule, ImageClassifier

TRUE_WIDTHS = [32, 32, 64, 64, 128]


def sgd(lr: float):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-3)


def trainer(**options: object) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def widened(network: VGG, factor: int, seed: int = 0) -> VGG:
    """Every channel ``factor`` times, shuffled; whoever reads it splits its weight among the copies."""
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    copies: Tensor | None = None
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            for name in ("weight", "bias"):
                setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[copies]))
            for name in ("running_mean", "running_var"):
                setattr(layer, name, getattr(layer, name)[copies])
            layer.num_features = len(copies)
            continue
        weight = layer.weight.detach()
        if copies is not None:
            share = torch.rand(len(copies), generator=generator) + 0.5
            share /= torch.zeros(weight.shape[1]).index_add_(0, copies, share)[copies]
            weight = weight[:, copies] * share.view(1, -1, *[1] * (weight.ndim - 2))
        if isinstance(layer, nn.Conv2d):
            many = torch.arange(len(weight)).repeat(factor)
            copies = many[torch.randperm(len(many), generator=generator)]
            weight = weight[copies]
            layer.out_channels, layer.in_channels = weight.shape[:2]
        else:
            layer.in_features = weight.shape[1]
        layer.weight = nn.Parameter(weight.contiguous())
    return network


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    return DigitsDataModule(batch_size=32)


@pytest.fixture(scope="module")
def trained(digits: DigitsDataModule) -> VGG:
    pl.seed_everything(0, verbose=False)
    module = ImageClassifier(VGG([[32, 32], [64, 64], [128]], in_channels=1), optimizer=sgd(0.05))
    trainer(max_epochs=8).fit(module, digits)
    return module.network


def prune(network: VGG, digits: DigitsDataModule, selection: SelectionConfig, tmp_path) -> PruningStep:
    """Cut by the callback in a fit that learns nothing: one training batch, learning rate 0."""
    callback = ACSPPruningCallback(
        epochs=[0], selection=selection, report_dir=tmp_path, report_plots=False
    )
    module = ImageClassifier(copy.deepcopy(network).train(), optimizer=sgd(0.0))
    trainer(max_epochs=2, limit_train_batches=1, callbacks=[callback]).fit(module, digits)
    (step,) = callback.steps
    return step


def test_widening_changes_no_output(trained: VGG) -> None:
    images = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            widened(trained, 4).eval()(images), trained.eval()(images), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("factor", [2, 4])
def test_the_default_rule_keeps_the_accuracy(factor, trained, digits, tmp_path) -> None:
    step = prune(widened(trained, factor), digits, SelectionConfig(), tmp_path)
    assert step.accuracy_before > 0.95
    assert step.accuracy_after >= step.accuracy_before - 0.02
    for (before, after), true in zip(step.layers.values(), TRUE_WIDTHS, strict=True):
        assert before == factor * true
        assert after <= 1.15 * true
        if factor == 4 and true >= 64:
            assert after >= 0.85 * true


def test_the_paper_preset_keeps_a_constant_share(trained, digits, tmp_path) -> None:
    """Its stopping rule is a ratio: it misses the true width, a quarter, by far."""
    step = prune(widened(trained, 4), digits, SelectionConfig.paper(), tmp_path)
    shares = [after / before for before, after in step.layers.values()]
    assert all(0.40 <= share <= 0.50 for share in shares)
