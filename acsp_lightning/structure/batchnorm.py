"""BatchNorm statistics, estimated again."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from acsp_lightning.structure.default_dtype import default_dtype
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.example import as_arguments


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
