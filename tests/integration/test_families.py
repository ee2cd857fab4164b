"""Every classification family of torchvision: cut or refused by name, never broken."""

import pytest
import torch
import torchvision
from helpers.oracle import assert_cut_is_masked, random_plan
from torch import nn
from torchvision import models

from acsp_lightning.measure.complexity import measure_complexity
from acsp_lightning.structure.verification import prunable_groups


def convnext() -> nn.Module:
    blocks = [models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 2)]
    return models.ConvNeXt(blocks, num_classes=5)


def maxvit() -> nn.Module:
    return models.MaxVit((32, 32), 8, 2, [16, 24], [1, 2], 8, 0.0, num_classes=5)


def resnext() -> nn.Module:
    return models.ResNet(models.resnet.Bottleneck, [1] * 4, 5, groups=32, width_per_group=4)


def swin() -> nn.Module:
    return models.SwinTransformer([4, 4], 16, [1, 2], [2, 4], [2, 2], num_classes=5)


def vit() -> nn.Module:
    return models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=5)


# The smallest member, or one made smaller; and the side of its images.
FAMILIES = {
    "alexnet": (lambda: models.alexnet(num_classes=5), 64),
    "convnext": (convnext, 32),
    "densenet": (lambda: models.DenseNet(8, (2, 3, 2), 16, num_classes=5), 32),
    "efficientnet": (lambda: models.efficientnet_b0(num_classes=5), 32),
    "googlenet": (lambda: models.googlenet(num_classes=5, init_weights=False), 64),
    "inception": (lambda: models.inception_v3(num_classes=5, aux_logits=False, init_weights=False), 75),
    "maxvit": (maxvit, 32),
    "mnasnet": (lambda: models.mnasnet0_5(num_classes=5), 32),
    "mobilenetv2": (lambda: models.mobilenet_v2(num_classes=5), 32),
    "mobilenetv3": (lambda: models.mobilenet_v3_small(num_classes=5), 32),
    "regnet": (lambda: models.regnet_y_400mf(num_classes=5), 32),
    "resnet": (lambda: models.resnet18(num_classes=5), 32),
    "resnext": (resnext, 32),
    "shufflenetv2": (lambda: models.shufflenet_v2_x0_5(num_classes=5), 32),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=5), 32),
    "swin_transformer": (swin, 32),
    "vgg": (lambda: models.vgg11_bn(num_classes=5), 32),
    "vision_transformer": (vit, 32),
}


def test_no_family_is_forgotten() -> None:
    builders = [models.get_model_builder(name) for name in models.list_models(module=torchvision.models)]
    assert {build.__module__.rpartition(".")[2] for build in builders} == FAMILIES.keys() - {"resnext"}


def called_layers(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, int]:
    """Output width of every convolution and linear layer that forward calls in eval mode.

    The others are heads that only training has, or hand their weights to a function.
    """
    called: set[nn.Module] = set()
    layers = {n: m for n, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    handles = [m.register_forward_hook(lambda m, *_: called.add(m)) for m in layers.values()]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return {name: len(layer.weight) for name, layer in layers.items() if layer in called}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_cut_or_refused_by_name(name: str) -> None:
    build, side = FAMILIES[name]
    torch.manual_seed(0)
    model, inputs = build().eval(), (torch.randn(2, 3, side, side),)
    tracing = prunable_groups(model, inputs, residual=True)
    assert tracing.groups
    cut_layers = {part.layer for group in tracing.groups for part in group.sides if part.side == "out"}
    neither = called_layers(model, inputs).keys() - cut_layers - tracing.left_whole.keys()
    outputs = [width for layer, width in called_layers(model, inputs).items() if layer in neither]
    assert outputs == [5], neither

    cut = assert_cut_is_masked(model, random_plan(tracing.groups, seed=0), inputs, tolerance=1e-4)
    one = (inputs[0][:1],)
    assert measure_complexity(cut, one).flops < measure_complexity(model, one).flops
    trained = cut.train()(*inputs)  # GoogLeNet gives several outputs here
    logits = torch.stack(list(trained)) if isinstance(trained, tuple) else trained
    logits.square().sum().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in cut.parameters())
    assert sum(p.grad is not None for p in cut.parameters()) == sum(1 for _ in cut.parameters())
