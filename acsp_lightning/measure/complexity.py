"""Size of a network: its parameters and the FLOPs of one forward pass."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from acsp_lightning.structure.forward import evaluation_state, positional

with warnings.catch_warnings():
    # Importing fvcore.nn scripts a loss function that is not used here.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")
    from fvcore.nn import FlopCountAnalysis


__all__ = ["Complexity", "measure_complexity"]


@dataclass(frozen=True, slots=True)
class Complexity:
    """Size of a network, and what the count left out.

    Attributes:
        parameters: number of scalars in all parameters, shared ones once, frozen ones included.
        flops: operations of one forward pass on the whole batch of inputs. A multiply-add counts as
            one, as in fvcore; many papers call this MACs and report twice as many FLOPs.
        by_layer: the FLOPs of every leaf module that has any, by qualified name. A module that is
            called several times has the sum, under its first name. Operations that a parent module
            runs itself are in ``flops`` only.
        unsupported: operators that fvcore cannot count and counts as zero, with their number of calls.
    """

    parameters: int
    flops: int
    by_layer: Mapping[str, int]
    unsupported: Mapping[str, int]


def measure_complexity(
    model: nn.Module, inputs: Tensor | Mapping[str, Tensor] | tuple[object, ...]
) -> Complexity:
    """Count the parameters of a network and the FLOPs of one forward pass.

    The network is traced once in evaluation mode, without gradients and without autocast, and is
    left as it was: modes, parameters, hooks, and torch's random state. Its own forward hooks run.

    fvcore's convention: convolutions and linear layers count their multiply-adds, biases nothing;
    BatchNorm counts 2 per element (1 without scale and shift), global average pooling 1 per input
    element; ReLU, reshaping, concatenation and dropout are free; other operators, such as additions and
    max-pooling, are listed as unsupported.

    Args:
        model: any module, including a LightningModule with or without a Trainer.
        inputs: a tensor or a dict of tensors, passed as ``model(inputs)``; or a tuple, passed as
            ``model(*inputs)``. On the device and in the dtype of the model.

    Returns:
        The counts, proportional to the batch size for most networks.

    Raises:
        TypeError: if ``inputs`` is none of these.
        ValueError: if the forward pass cannot be traced; the cause is chained.
    """
    arguments = positional(inputs)
    analysis = FlopCountAnalysis(model, arguments)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with evaluation_state(model), _leaked_hooks_removed(model):
            by_module: Mapping[str, float] = analysis.by_module()
    except Exception as error:
        raise ValueError(
            f"Counting the operations of {type(model).__name__} needs a forward pass that "
            f"torch.jit can trace, called with ({', '.join(map(_describe, arguments))}); it raised "
            f"{type(error).__name__}: {error}. Check that model(*inputs) runs by itself, on the "
            "model's device and dtype, and that it calls no compiled functions but its own methods."
        ) from error
    parents = {name.rpartition(".")[0] for name in by_module if name}
    return Complexity(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=int(by_module[""]),
        by_layer={
            name: int(flops) for name, flops in by_module.items() if flops and name not in parents
        },
        unsupported=dict(analysis.unsupported_ops()),
    )


@contextmanager
def _leaked_hooks_removed(model: nn.Module) -> Iterator[None]:
    """Remove the hooks that fvcore leaves behind when the forward pass fails."""
    hooks = [
        (registry, set(registry))
        for module in model.modules()
        for registry in (module._forward_hooks, module._forward_pre_hooks)
    ]
    try:
        yield
    finally:
        for registry, before in hooks:
            for key in set(registry) - before:
                del registry[key]


def _describe(argument: object) -> str:
    if isinstance(argument, Tensor):
        return f"{argument.dtype} {tuple(argument.shape)} on {argument.device}"
    return type(argument).__name__
