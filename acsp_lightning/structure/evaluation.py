"""The state that a network is looked at in: eval mode, eager, without autocast, and back."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from acsp_lightning.structure.randomness import random_state_kept
from acsp_lightning.structure.restoring import state_restored


@contextmanager
def evaluation_state(
    model: nn.Module, *, grad: bool = False, but: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Run ``model`` in eval mode, eagerly, without autocast; afterwards it is as it was.

    Train/eval flags of every submodule, buffers and attributes (see
    :func:`~acsp_lightning.structure.restoring.state_restored`), ``requires_grad`` of every parameter,
    the grad mode and the random state (of Python, NumPy and torch) are put back, also when the body
    raises.

    Args:
        model: any module.
        grad: enable autograd and let every floating-point parameter require gradients meanwhile.
        but: submodules whose buffers and attributes keep what the body makes of them.
    """
    flags = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    device_type = next((p.device.type for p in model.parameters()), "cpu")
    with (
        state_restored(model, but=but),
        random_state_kept(model),
        without_autocast(device_type),
        # Compiled code would run past hooks that were added after its compilation.
        torch.compiler.set_stance("force_eager"),
        uncompiled(model),
        torch.inference_mode(False),
        torch.set_grad_enabled(grad),
    ):
        try:
            model.eval()
            for module in model.modules():
                if vars(module).get("_trainer") is not None:
                    # What forward logs is of the passes of the fit; log_dict calls log.
                    vars(module)["log"] = log_nothing
            if grad:
                for parameter in frozen:
                    parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module, training in flags:
                module.training = training


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """Train mode for forward passes, and eval mode after them."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # in train mode it refuses a batch of one
    try:
        yield
    finally:
        model.eval()


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run ``model`` without what ``torch.compile`` made of it; afterwards that is back in place.

    Compiled callables that are attributes of a module give way to the originals: compiled forwards,
    steps and other methods, and modules compiled in place. torch.jit refuses to trace compiled
    callables, even while the compiler is told to stand back.
    """
    compiled = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if callable(value) and hasattr(value, "_torchdynamo_orig_callable")
    ]
    try:
        for attributes, name, value in compiled:
            attributes[name] = value._torchdynamo_orig_callable
        yield
    finally:
        for attributes, name, value in compiled:
            attributes[name] = value


def is_compiled(model: nn.Module) -> bool:
    """Whether an attribute of a module is a callable that ``torch.compile`` made."""
    return any(
        callable(value) and hasattr(value, "_torchdynamo_orig_callable")
        for module in model.modules()
        for value in vars(module).values()
    )


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """No autocast in the body; of devices that have none, nothing."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def log_nothing(*_: Any, **__: Any) -> None:
    """``LightningModule.log`` where a pass is none of the fit."""
