"""The networks of the paper's tables, cut by the default rule in a fit."""

from functools import partial

import pytest
import torch
import torchvision
from helpers.fits import Classifier, Fit
from torch.utils.data import DataLoader, TensorDataset

from acsp_lightning import ACSPPruningCallback, zoo

pytestmark = pytest.mark.recipes

CLASSES = 3
NETWORKS = {
    "resnet20": zoo.resnet20,
    "resnet56": zoo.resnet56,
    "vgg16_bn": zoo.vgg16_bn,
    "vgg19_bn": zoo.vgg19_bn,
    "densenet40": zoo.densenet40,
    "mobilenet_v2": zoo.mobilenet_v2,
    # Half as wide as theirs, which takes a third of the time.
    "torchvision_mobilenet_v2": partial(torchvision.models.mobilenet_v2, width_mult=0.5),
    "torchvision_resnet50": partial(torchvision.models.resnet50, width_per_group=32),
}


def noisy_images(samples: int, seed: int) -> TensorDataset:
    """Noisy copies of one pattern per class, 3 x 32 x 32; every class equally often, in turn."""
    patterns = torch.randn(CLASSES, 3, 32, 32, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(samples, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(samples) % CLASSES
    return TensorDataset(patterns[labels] + noise, labels)


@pytest.mark.filterwarnings("ignore:Cuts cannot be measured on 6 samples")
@pytest.mark.parametrize("name", NETWORKS)
def test_cut_by_the_default_rule_and_trained_on(name: str, fit: Fit) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](num_classes=CLASSES)
    pruning = ACSPPruningCallback(epochs=[0], report_plots=False)
    module = Classifier(network)
    train, val = (DataLoader(noisy_images(12, seed), batch_size=12) for seed in (1, 2))
    fit(module, [pruning], train, val, max_epochs=2)
    (step,) = pruning.steps
    assert step.after.flops < step.before.flops
    assert step.after.parameters < step.before.parameters
    assert module.steps == 2
    assert torch.isfinite(torch.tensor(module.losses)).all()
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    module.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.eval()(torch.randn(2, 3, 32, 32)).shape == (2, CLASSES)
