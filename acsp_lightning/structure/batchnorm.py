"""BatchNorm statistics: estimated again, or made those of what layers are given after a cut."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from acsp_lightning.functional.pooled import PooledMoments
from acsp_lightning.functional.precision import alike, wide
from acsp_lightning.structure.default_dtype import default_dtype
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.example import as_arguments
from acsp_lightning.structure.forward import run_forward


def recalibrate_batchnorm(model: nn.Module, inputs: Iterable[Any], batches: int) -> None:
    """Estimate the running statistics of the BatchNorm layers again, all others in eval mode.

    Means and unbiased variances of the batches are averaged, every batch counting alike. Layers in
    eval mode (frozen by the user) keep theirs, and so do all if there is no batch.

    Args:
        model: the network; everything but the running statistics is left as it was.
        inputs: arguments of ``model``, on its device.
        batches: how many to average over, at least 1; fewer if ``inputs`` ends before.
    """
    live = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [module.momentum for module in live]
    with evaluation_state(model, but=live), torch.no_grad():
        try:
            for place, batch in enumerate(islice(inputs, batches)):
                for module in live:
                    module.training = True
                    # The n-th batch enters with weight 1/n, which makes the average a plain mean.
                    module.momentum = 1 / (place + 1)
                with default_dtype(model):
                    model(*as_arguments(model, batch))
        finally:
            for module, momentum in zip(live, momenta, strict=True):
                module.momentum = momentum


def matched_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers whose statistics :func:`match_batchnorm` can change and make up for, by name.

    They have running statistics, a scale and a shift, which belong to no other module, and are not in
    eval mode (frozen by the user) in a network that is in train mode.
    """
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())

    def is_own(parameter: nn.Parameter | None) -> bool:
        return parameter is not None and owners[id(parameter)] == 1

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and (module.training or not model.training)
        and module.running_mean is not None
        and is_own(module._parameters.get("weight"))
        and is_own(module._parameters.get("bias"))
    }


def measure_batchnorm(model: nn.Module, inputs: Iterable[tuple[Any, ...]]) -> dict[str, PooledMoments]:
    """Means and spreads of what :func:`matched_layers` are given in eval mode, by name.

    Args:
        model: left as it is.
        inputs: arguments of forward, by batch.
    """
    found: dict[str, PooledMoments] = {}
    layers = matched_layers(model)
    with ExitStack() as stack:
        stack.enter_context(evaluation_state(model))
        for name, module in layers.items():

            def hook(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                if args and args[0].numel():
                    found.setdefault(name, PooledMoments()).add(args[0], 1)

            stack.callback(module.register_forward_pre_hook(hook).remove)
        for batch in inputs:
            run_forward(model, batch)
    return found


@torch.no_grad()
def match_batchnorm(model: nn.Module, moments: Mapping[str, PooledMoments]) -> None:
    """Let layers have the statistics of what they are given, and compute the same as before.

    A refit leaves the running statistics of the uncut network, and outputs that vary less, as every
    prediction does. In eval mode that is right. In train mode statistics are those of the batch: what is
    left of the signal would be blown up to its old size at the first step of the training that follows.
    So the statistics change here, and scale and shift make up for that.

    Args:
        model: changes in place; in eval mode its outputs stay as they are, up to rounding.
        moments: from :func:`measure_batchnorm`; layers of which they are not finite stay as they are.
    """
    for name, module in matched_layers(model).items():
        if name not in moments:
            continue
        mean, variance = wide(moments[name].mean), wide(moments[name].spread).square()
        if not bool((mean.isfinite() & variance.isfinite()).all()):
            continue
        assert module.running_mean is not None
        assert module.running_var is not None
        old_mean, old_spread = wide(module.running_mean), (wide(module.running_var) + module.eps).sqrt()
        scale = wide(module.weight)
        module.bias.add_(alike(scale * (mean - old_mean) / old_spread, module.bias))
        module.weight.copy_(alike(scale * (variance + module.eps).sqrt() / old_spread, module.weight))
        module.running_mean.copy_(alike(mean, module.running_mean))
        module.running_var.copy_(alike(variance, module.running_var))
