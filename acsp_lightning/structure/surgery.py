"""Cutting a network in place: all of a plan, or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
class Replacement:
    """A parameter that a cut replaced by a smaller one.

    Attributes:
        name: qualified name, the same before and after.
        old: the parameter as it was, untouched.
        new: the parameter that stands in its place; it carries ``requires_grad``, the memory format,
            the attributes and the gradient hooks that were set on the old one, but no gradient.
        cuts: (dimension, kept indices) in the order in which the old one was sliced.
    """

    name: str
    old: nn.Parameter
    new: nn.Parameter
    cuts: tuple[tuple[int, torch.Tensor], ...]

    def slice(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, of the shape of the old parameter, cut as the parameter was."""
        for dim, kept in self.cuts:
            tensor = slice_tensor(tensor, dim, kept)
        return tensor


def apply_plan(model: nn.Module, plan: PruningPlan) -> tuple[Replacement, ...]:
    """Cut ``model`` in place, all of ``plan`` or nothing.

    Needs no example input and no optimizer; where an optimizer holds the parameters, pass the result
    to :func:`acsp_lightning.structure.optimizer.slice_optimizer_state`.

    Args:
        model: a network whose layers have the widths that the plan was made for.
        plan: kept indices per layer side.

    Returns:
        One entry for every parameter that was replaced.

    Raises:
        ValueError: if the plan does not fit the model: says which layer, the width found and the
            width expected. The model is untouched then.
    """
    check_plan(model, plan)
    with reversible_cut(model, plan) as replacements:
        return replacements


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
) -> Iterator[tuple[Replacement, ...]]:
    """Cut ``model`` for the body; put it back if the body raises, or at the end unless ``keep``.

    The way back is exact: the very parameter and buffer objects of before stand in their places.

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
        yield _cut(modules, plan)
        stays = keep
    finally:
        if not stays:
            for module, state in zip(touched, before, strict=True):
                _restore(module, state)


def _snapshot(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    sizes = {key: value for key, value in vars(module).items() if type(value) is int}
    return dict(module._parameters), dict(module._buffers), sizes


def _restore(module: nn.Module, state: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    parameters, buffers, sizes = state
    module._parameters.update(parameters)
    module._buffers.update(buffers)
    vars(module).update(sizes)


def _cut(modules: dict[str, nn.Module], plan: PruningPlan) -> tuple[Replacement, ...]:
    slices: dict[tuple[str, str], list[tuple[int, torch.Tensor]]] = {}
    for cut in plan:
        layout = side_layout(modules[cut.layer], cut.side)
        kept = torch.tensor(cut.kept, dtype=torch.int64)
        for name, dim in layout.tensors:
            if getattr(modules[cut.layer], name, None) is not None:
                slices.setdefault((cut.layer, name), []).append((dim, kept))
    replacements = []
    # Parameters made under inference_mode could never be trained.
    with torch.inference_mode(False), torch.no_grad():
        for (layer, name), cuts in slices.items():
            old = getattr(modules[layer], name)
            new = old
            for dim, kept in cuts:
                new = slice_tensor(new, dim, kept)
            if isinstance(old, nn.Parameter):
                new = parameter_like(old, new)
                replacements.append(Replacement(f"{layer}.{name}", old, new, tuple(cuts)))
            setattr(modules[layer], name, new)
    for cut in plan:
        _set_sizes(modules[cut.layer], cut)
    return tuple(replacements)


def parameter_like(old: nn.Parameter, data: torch.Tensor) -> nn.Parameter:
    """A parameter of other data with what users have set on ``old``: attributes, hooks, the flag."""
    new = nn.Parameter(data, requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        registered = getattr(old, hooks)
        if registered:
            # The same dictionary: the handles that users hold still remove their hooks.
            setattr(new, hooks, registered)
    return new


def _set_sizes(module: nn.Module, cut: SideCut) -> None:
    for attribute in side_layout(module, cut.side).sizes:
        setattr(module, attribute, len(cut.kept))
