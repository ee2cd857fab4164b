"""The optimizer goes on: the same object, with its state cut as the parameters were."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from acsp_lightning.structure.surgery import Replacement


def slice_optimizer_state(optimizer: Optimizer, replacements: Iterable[Replacement]) -> tuple[str, ...]:
    """Let ``optimizer`` follow a cut, in place.

    Every replaced parameter is exchanged at its place in its parameter group; learning rates and
    order do not change. State tensors of the parameter's shape (momentum, Adam's moments) are sliced
    alike, scalars (step counts) are kept. A parameter with state of any other shape (factored
    moments) loses all of its state, so that the optimizer starts it afresh; LBFGS, whose state runs
    through all parameters at once, loses it for all that were cut.

    Args:
        optimizer: any torch optimizer; parameters that it does not hold are passed over.
        replacements: what :func:`acsp_lightning.structure.surgery.apply_plan` returned.

    Returns:
        Names of the parameters whose state was dropped.
    """
    by_old = {id(r.old): r for r in replacements}
    if isinstance(optimizer, torch.optim.LBFGS):
        return _restart_lbfgs(optimizer, by_old)
    dropped: list[str] = []
    for group in optimizer.param_groups:
        for place, parameter in enumerate(group["params"]):
            replacement = by_old.get(id(parameter))
            if replacement is None:
                continue
            group["params"][place] = replacement.new
            state = optimizer.state.pop(parameter, None)
            if not state:
                continue
            if all(_can_follow(value, replacement) for value in state.values()):
                optimizer.state[replacement.new] = {
                    key: _follow(value, replacement) for key, value in state.items()
                }
            else:
                dropped.append(replacement.name)
    return tuple(dropped)


def _restart_lbfgs(optimizer: torch.optim.LBFGS, by_old: dict[int, Replacement]) -> tuple[str, ...]:
    """LBFGS keeps one state, flattened over all parameters, under the first: drop it whole."""
    parameters = optimizer.param_groups[0]["params"]
    held = {place: by_old[id(p)] for place, p in enumerate(parameters) if id(p) in by_old}
    if not held:
        return ()
    had_state = bool(optimizer.state)
    optimizer.state.clear()
    optimizer._numel_cache = None
    for place, replacement in held.items():
        parameters[place] = replacement.new
    return tuple(replacement.name for replacement in held.values()) if had_state else ()


def _can_follow(value: Any, replacement: Replacement) -> bool:
    if isinstance(value, torch.Tensor):
        return value.shape == replacement.old.shape or value.numel() == 1
    return value is None or isinstance(value, bool | int | float | str)


def _follow(value: Any, replacement: Replacement) -> Any:
    if isinstance(value, torch.Tensor) and value.shape == replacement.old.shape:
        return replacement.slice(value)
    return value
