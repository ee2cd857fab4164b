"""Cutting a network in place: all of a plan, or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from acsp_lightning.structure.layers import (
    is_consumer,
    refusal,
    side_layout,
    side_width,
    slice_tensor,
)
from acsp_lightning.structure.plan import PruningPlan, SideCut


@dataclass(frozen=True, slots=True, eq=False)
class SlicedParameter:
    """A parameter that a cut made smaller.

    Attributes:
        name: qualified name.
        parameter: the same object as before the cut, so that whoever holds it (optimizers, lists for
            penalties or clipping) holds the smaller one; it has no gradient.
        old: its data before the cut, untouched.
        cuts: (dimension, kept indices) in the order in which the data was sliced.
    """

    name: str
    parameter: nn.Parameter
    old: torch.Tensor
    cuts: tuple[tuple[int, torch.Tensor], ...]

    def slice(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, of the shape of the old data, cut as the parameter was."""
        for dim, kept in self.cuts:
            tensor = slice_tensor(tensor, dim, kept)
        return tensor


def apply_plan(model: nn.Module, plan: PruningPlan) -> tuple[SlicedParameter, ...]:
    """Cut ``model`` in place, all of ``plan`` or nothing.

    Needs no example input and no optimizer. Parameters stay the same objects; where an optimizer has
    state for them, pass the result to
    :func:`acsp_lightning.structure.optimizer.slice_optimizer_state`.

    Args:
        model: a network whose layers have the widths that the plan was made for.
        plan: kept indices per layer side.

    Returns:
        One entry for every parameter that became smaller.

    Raises:
        ValueError: if the plan does not fit the model: says which layer, the width found and the
            width expected. The model is untouched then.
    """
    check_plan(model, plan)
    with reversible_cut(model, plan) as sliced:
        return sliced


def check_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Raise the ``ValueError`` that :func:`apply_plan` would raise; change nothing."""
    modules = dict(model.named_modules())
    for cut in plan:
        module = modules.get(cut.layer)
        if module is None:
            raise ValueError(f"the plan cuts {cut.layer!r}, which {type(model).__name__} does not have.")
        reason = refusal(module)
        if reason is not None:
            raise ValueError(f"the plan cuts {cut.layer!r}, but {reason}.")
        if cut.side == "in" and not is_consumer(module):
            raise ValueError(
                f"the plan cuts {cut.layer!r} on its in side, but it passes its channels on one by one: "
                "its only side is 'out'."
            )
        width = side_width(module, cut.side)
        if width != cut.width:
            raise ValueError(
                f"the plan was made for a {cut.layer!r} with {cut.width} channels on its {cut.side} "
                f"side; this one has {width}. Apply plans in the order in which they were made."
            )


@contextmanager
def reversible_cut(
    model: nn.Module, plan: PruningPlan, *, keep: bool = True
) -> Iterator[tuple[SlicedParameter, ...]]:
    """Cut ``model`` for the body; put it back if the body raises, or at the end unless ``keep``.

    The way back is exact: every parameter gets back its data and its gradient, and the very buffers of
    before stand in their places.

    Args:
        model: checked against the plan by the caller.
        plan: what to keep.
        keep: whether the cut stays when the body ends well.
    """
    modules = dict(model.named_modules())
    touched = [modules[layer] for layer in dict.fromkeys(cut.layer for cut in plan)]
    before = [_snapshot(module) for module in touched]
    stays = False
    try:
        sliced = _cut(modules, plan)
        yield sliced
        stays = keep
    finally:
        if not stays:
            for module, state in zip(touched, before, strict=True):
                _restore(module, state)
    # Not for a trial: whoever holds the accumulators goes on with them.
    for entry in sliced:
        if stays:
            set_data(entry.parameter, entry.parameter.data)


@dataclass(frozen=True, slots=True)
class _State:
    """What a cut changes in one layer."""

    parameters: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor | None]]
    buffers: dict[str, torch.Tensor | None]
    sizes: dict[str, int]


def _snapshot(module: nn.Module) -> _State:
    return _State(
        [(p, p.data, p.grad) for p in module.parameters(recurse=False)],
        dict(module._buffers),
        {key: value for key, value in vars(module).items() if type(value) is int},
    )


def _restore(module: nn.Module, state: _State) -> None:
    for parameter, data, gradient in state.parameters:
        parameter.data = data
        parameter.grad = gradient
    module._buffers.update(state.buffers)
    vars(module).update(state.sizes)


def _cut(modules: dict[str, nn.Module], plan: PruningPlan) -> tuple[SlicedParameter, ...]:
    slices: dict[tuple[str, str], list[tuple[int, torch.Tensor]]] = {}
    for cut in plan:
        layout = side_layout(modules[cut.layer], cut.side)
        kept = torch.tensor(cut.kept, dtype=torch.int64)
        for name, dim in layout.tensors:
            if getattr(modules[cut.layer], name, None) is not None:
                slices.setdefault((cut.layer, name), []).append((dim, kept))
    sliced = []
    # Data made under inference_mode could never be trained.
    with torch.inference_mode(False), torch.no_grad():
        for (layer, name), cuts in slices.items():
            tensor = getattr(modules[layer], name)
            old = tensor.data if isinstance(tensor, nn.Parameter) else tensor
            new = old
            for dim, kept in cuts:
                new = slice_tensor(new, dim, kept)
            if isinstance(tensor, nn.Parameter):
                tensor.grad, tensor.data = None, new
                sliced.append(SlicedParameter(f"{layer}.{name}", tensor, old, tuple(cuts)))
            else:
                setattr(modules[layer], name, new)
    for cut in plan:
        _set_sizes(modules[cut.layer], cut)
    return tuple(sliced)


def set_data(parameter: nn.Parameter, data: torch.Tensor) -> None:
    """Let a parameter hold data of another shape, without a gradient; it stays the same object."""
    parameter.grad = None
    # An accumulator of its gradients that is still alive (DistributedDataParallel holds them) expects
    # the old shape. Torch makes a new one only when the type of the data changes: it does in between.
    between = torch.float32 if parameter.dtype == torch.float16 else torch.float16
    parameter.data = parameter.data.new_empty(0, dtype=between)
    parameter.data = data


def _set_sizes(module: nn.Module, cut: SideCut) -> None:
    for attribute in side_layout(module, cut.side).sizes:
        setattr(module, attribute, len(cut.kept))
