"""Size of a network: its parameters and the FLOPs of one forward pass."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from acsp_lightning.structure.default_dtype import default_dtype
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.forward import CHECKPOINTED, is_checkpointed, output_tensors
from acsp_lightning.structure.inputs import positional
from acsp_lightning.structure.usage import unused_parameters

with warnings.catch_warnings():
    # Importing fvcore.nn scripts a loss function that is not used here.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")
    from fvcore.nn import FlopCountAnalysis


__all__ = ["Complexity", "measure_complexity"]

ADVICE = (
    "Check that model(*inputs) runs by itself, on the model's device and dtype, and that it calls no "
    "compiled functions but its own methods."
)


@dataclass(frozen=True, slots=True)
class Complexity:
    """Size of a network, and what the count left out.

    Attributes:
        parameters: number of scalars in the parameters that forward uses, in eval or train mode, shared
            ones once, frozen ones included.
        flops: operations of one forward pass on the whole batch of inputs. A multiply-add counts as
            one, as in fvcore; many papers call this MACs and report twice as many FLOPs.
        by_layer: the FLOPs that every module runs itself, without its submodules, by qualified name,
            "" being the whole network; modules without any are left out, and the sum is ``flops``. A
            module that is called several times has the sum, under its first name.
        unsupported: operators that fvcore cannot count and counts as zero, with their number of calls.
        unused: number of scalars that forward does not use, by the outermost submodule that holds them:
            a teacher, a loss with weights, an averaged copy.
    """

    parameters: int
    flops: int
    by_layer: Mapping[str, int]
    unsupported: Mapping[str, int]
    unused: Mapping[str, int] = field(default_factory=dict)


def measure_complexity(
    model: nn.Module, inputs: Tensor | Mapping[str, Tensor] | tuple[object, ...]
) -> Complexity:
    """Count the parameters of a network and the FLOPs of one forward pass.

    The network is traced once in evaluation mode, and run once in each mode to see which parameters
    it uses, without gradients and without autocast. It is left unchanged: modes, parameters, buffers,
    attributes and hooks; so are the generators of random numbers. Its own forward hooks run.

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
        with evaluation_state(model), default_dtype(model), _leaked_hooks_removed(model):
            # torch.jit knows tensors, tuples and dicts alone.
            model.register_forward_hook(lambda _module, _inputs, outputs: tuple(output_tensors(outputs)))
            by_module: Mapping[str, float] = analysis.by_module()
    except Exception as error:
        cause = CHECKPOINTED if is_checkpointed(model, arguments) else ADVICE
        raise ValueError(
            f"Counting the operations of {type(model).__name__} needs a forward pass that "
            f"torch.jit can trace, called with ({', '.join(map(_describe, arguments))}); it raised "
            f"{type(error).__name__}: {error}. {cause}"
        ) from error
    unused = unused_parameters(model, arguments)
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()) - sum(unused.values()),
        flops=int(by_module[""]),
        by_layer=_own_flops(by_module),
        unsupported=dict(analysis.unsupported_ops()),
        unused=unused,
    )


def _own_flops(by_module: Mapping[str, float]) -> dict[str, int]:
    """FLOPs of every module less those of its submodules, since layers may have children too."""
    own = dict(by_module)
    for name, flops in by_module.items():
        if name:
            own[name.rpartition(".")[0]] -= flops
    return {name: int(flops) for name, flops in own.items() if flops}


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
