"""Whether a cut does what it says: the same as zeroing the channels where consumers read them.

The tracer follows unknown operators by guessing. Before a group is offered, it is therefore cut for
a trial, in place and undone at once, and every consumer's output is compared with that of the whole
network in which the same channels were zeroed at the consumers' inputs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.structure.forward import (
    call_counts,
    evaluation_state,
    output_tensors,
    varied,
)
from acsp_lightning.structure.groups import ChannelGroup, Tracing
from acsp_lightning.structure.layers import channel_dim
from acsp_lightning.structure.plan import PruningPlan, build_plan
from acsp_lightning.structure.surgery import reversible_cut

# Largest deviation allowed, as a share of the largest value of the layer's output. Reordered sums and
# TF32 stay below a thousandth of it per layer; a wrong index is of order one.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def verify_groups(model: nn.Module, inputs: tuple[Any, ...], tracing: Tracing) -> Tracing:
    """Keep the groups whose cut equals zeroed channels; move the others to ``left_whole``.

    All groups are tried together first, and in halves only if that fails, so that the usual cost is
    two forward passes.

    Args:
        model: any module; left as it was.
        inputs: example arguments of ``forward``.
        tracing: what :func:`acsp_lightning.structure.groups.trace_groups` found.
    """
    inputs = varied(inputs)
    with evaluation_state(model):
        trains = _has_training_only_layers(model, inputs) and _training_forward(model, inputs) is None
        reasons = _reasons(model, inputs, tracing.groups, trains)
    return Tracing(
        tuple(group for group in tracing.groups if group.name not in reasons),
        {**tracing.left_whole, **reasons},
    )


def _reasons(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup], trains: bool
) -> dict[str, str]:
    """Why groups must stay whole, by name; halves the set until the culprits stand alone."""
    reason = _difference(model, inputs, groups, trains) if groups else None
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    half = len(groups) // 2
    return {
        **_reasons(model, inputs, groups[:half], trains),
        **_reasons(model, inputs, groups[half:], trains),
    }


def _difference(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup], trains: bool
) -> str | None:
    """Cut a third of every group for a trial; what went wrong, or None."""
    kept = {group.name: _two_thirds(group.width) for group in groups}
    plan = build_plan(groups, kept)
    consumers = {side.layer for group in groups for side in group.consumers}
    with _zeroed_inputs(model, plan, consumers), _recorded(model, consumers) as expected:
        shapes = [output.shape for output in output_tensors(model(*inputs))]
    try:
        with reversible_cut(model, plan, keep=False):
            with _recorded(model, consumers) as found:
                outputs = output_tensors(model(*inputs))
            error = _training_forward(model, inputs) if trains else None
    except Exception as exception:
        error = exception
    if error is not None:
        return f"forward fails after a cut ({type(error).__name__}: {error})"
    if [output.shape for output in outputs] != shapes:
        return "a cut changes the shape of the network's output"
    for layer in consumers:
        whole = expected[layer]
        dim = channel_dim(model.get_submodule(layer))
        rows = plan.kept(layer, "out")
        if rows is not None:
            whole = whole.index_select(dim, torch.tensor(rows, device=whole.device))
        if whole.shape != found[layer].shape or not _close(whole, found[layer]):
            return f"{layer!r} does not compute the same from the channels that are kept"
    return None


def _has_training_only_layers(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether layers stay idle in eval mode (auxiliary heads), so that no tracing sees them."""
    owners = {name for name, m in model.named_modules() if next(m.parameters(False), None) is not None}
    return bool(owners - set(call_counts(model, inputs)))


def _training_forward(model: nn.Module, inputs: tuple[Any, ...]) -> Exception | None:
    """The error of one forward pass in train mode, if any; buffers are put back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        model(*inputs)
    except Exception as error:
        return error
    finally:
        model.eval()
        for buffer, value in buffers:
            buffer.copy_(value)
    return None


def _two_thirds(width: int) -> list[int]:
    """A fixed, irregular choice of channels, so that shifted and permuted indices show."""
    order = torch.randperm(width, generator=torch.Generator().manual_seed(width))
    return sorted(order[: max(1, 2 * width // 3)].tolist())


def _close(expected: Tensor, found: Tensor) -> bool:
    tolerance = TOLERANCE.get(expected.dtype, 1e-2)
    expected, found = expected.double(), found.double()
    scale = expected.abs().amax().clamp_min(1e-12)
    return bool((expected - found).abs().amax() <= tolerance * scale)


@contextmanager
def _zeroed_inputs(model: nn.Module, plan: PruningPlan, consumers: Iterable[str]) -> Iterator[None]:
    """Zero what the plan drops where the consumers read it."""

    def zero(layer: str) -> Any:
        kept = plan.kept(layer, "in")

        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if kept is None:
                return arguments
            dim = channel_dim(module)
            mask = torch.zeros(arguments[0].shape[dim], device=arguments[0].device)
            mask[list(kept)] = 1
            shape = [1] * arguments[0].ndim
            shape[dim] = -1
            return (arguments[0] * mask.view(shape).to(arguments[0].dtype), *arguments[1:])

        return hook

    handles = [model.get_submodule(layer).register_forward_pre_hook(zero(layer)) for layer in consumers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recorded(model: nn.Module, layers: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """The outputs of ``layers`` in the forward pass that the body makes."""
    outputs: dict[str, Tensor] = {}

    def recorder(layer: str) -> Any:
        def record(_module: nn.Module, _arguments: object, output: Tensor) -> None:
            outputs[layer] = output.detach()

        return record

    handles = [model.get_submodule(layer).register_forward_hook(recorder(layer)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
