"""The optimizer goes on: the same object, with its state cut as the parameters were."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from acsp_lightning.structure.surgery import SlicedParameter


def nested_optimizers(optimizers: Iterable[Optimizer]) -> Iterator[Optimizer]:
    """Optimizers, and those that they hold in attributes (SAM, Lookahead), each once."""
    seen: set[int] = set()
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if id(optimizer) in seen:
            continue
        seen.add(id(optimizer))
        yield optimizer
        for value in vars(optimizer).values():
            held = value.values() if isinstance(value, Mapping) else value
            entries = held if isinstance(value, list | tuple | Mapping) else [value]
            waiting += [entry for entry in entries if isinstance(entry, Optimizer)]


def slice_optimizer_state(optimizer: Optimizer, sliced: Iterable[SlicedParameter]) -> tuple[str, ...]:
    """Let the state of an optimizer follow a cut, in place.

    Parameter groups hold the parameters themselves, so that learning rates and order do not change.
    State tensors of the parameter's old shape (momentum, Adam's moments, slow weights) are sliced
    alike, also where they lie in a list beside the parameters of a group or in a dict by parameter or
    its id; scalars (step counts) are kept. A parameter with state of any other shape (factored moments)
    loses all of its state, so that the optimizer starts it again; LBFGS, whose state runs through all
    parameters at once, loses it for all that were cut.

    Args:
        optimizer: any torch optimizer; parameters that it does not hold are passed over.
        sliced: what :func:`acsp_lightning.structure.surgery.apply_plan` returned.

    Returns:
        Names of the parameters whose state was dropped.
    """
    by_parameter = {id(entry.parameter): entry for entry in sliced}
    if isinstance(optimizer, torch.optim.LBFGS):
        return _restart_lbfgs(optimizer, by_parameter)
    dropped: list[str] = []
    for parameter, state in list(optimizer.state.items()):
        entry = by_parameter.get(id(parameter))
        if entry is None or not state:
            continue
        if all(_can_follow(value, entry) for value in state.values()):
            optimizer.state[parameter] = {key: _follow(value, entry) for key, value in state.items()}
        else:
            del optimizer.state[parameter]
            dropped.append(entry.name)
    for container, place, parameter in list(held_beside(optimizer)):
        entry = by_parameter.get(id(parameter))
        if entry is not None and _has_old_shape(container[place], entry):
            container[place] = entry.slice(container[place])
    return tuple(dropped)


def correct_weights(optimizers: Iterable[Optimizer], corrections: Mapping[int, torch.Tensor]) -> None:
    """Correct weights that optimizers hold (slow weights, master copies) as the parameters were.

    Whether a tensor is such a copy, or a momentum, its values tell: a copy is nearer to the parameter
    before the correction than half of the parameter's size. Each is corrected once, whoever shows it.

    Args:
        optimizers: all of a fit; their state has the shapes of the parameters already, and changes in
            place.
        corrections: what was added to a parameter, by its identity.
    """
    done: set[int] = set()
    for parameter, value in (pair for optimizer in optimizers for pair in _held(optimizer)):
        correction = corrections.get(id(parameter))
        if correction is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
            continue
        if value.shape != parameter.shape or not value.is_floating_point():
            continue
        place = value.data_ptr()
        if place == parameter.data_ptr() or place in done:
            continue
        with torch.no_grad():
            before = (parameter - correction).to(value)
            if bool((value - before).norm() < before.norm() / 2):
                value.add_(correction.to(value))
                done.add(place)


def _held(optimizer: Optimizer) -> Iterator[tuple[Any, Any]]:
    """What an optimizer holds for parameters: each parameter with a value."""
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, torch.Tensor):
            yield from ((parameter, value) for value in state.values())
    for container, place, parameter in held_beside(optimizer):
        yield parameter, container[place]


def held_beside(optimizer: Optimizer) -> Iterator[tuple[Any, Any, torch.Tensor]]:
    """Where an optimizer may hold a tensor for a parameter beside its state, such as slow weights.

    Yields:
        A list or dict, the place in it, and the parameter that the place belongs to: entries of lists in
        the order of a group's parameters, or of all parameters, and of dicts by parameter or its id.
    """
    groups = [group["params"] for group in optimizer.param_groups]
    everything = [parameter for parameters in groups for parameter in parameters]
    for group in optimizer.param_groups:
        for name, value in group.items():
            if name != "params":
                yield from _places(value, group["params"])
    for name, value in vars(optimizer).items():
        if name in ("state", "param_groups"):
            continue
        if isinstance(value, MutableMapping):
            yield from ((value, key, key) for key in value if isinstance(key, torch.Tensor))
            by_id = {id(parameter): parameter for parameter in everything}
            yield from (
                (value, key, by_id[key])
                for key, entry in value.items()
                if isinstance(key, int) and key in by_id and isinstance(entry, torch.Tensor)
            )
        elif isinstance(value, list) and len(value) == len(groups) and isinstance(value[0], list):
            for entries, parameters in zip(value, groups, strict=True):
                yield from _places(entries, parameters)
        else:
            yield from _places(value, everything)


def _places(values: Any, parameters: Sequence[torch.Tensor]) -> Iterator[tuple[Any, Any, torch.Tensor]]:
    """Places of a list of tensors that stands beside a list of parameters and is not that list."""
    if isinstance(values, list) and len(values) == len(parameters):
        for place, (value, parameter) in enumerate(zip(values, parameters, strict=True)):
            if isinstance(value, torch.Tensor) and value is not parameter:
                yield values, place, parameter


def _restart_lbfgs(
    optimizer: torch.optim.LBFGS, by_parameter: Mapping[int, SlicedParameter]
) -> tuple[str, ...]:
    """LBFGS keeps one state, flattened over all parameters, under the first: drop it whole."""
    parameters = optimizer.param_groups[0]["params"]
    held = [by_parameter[id(p)] for p in parameters if id(p) in by_parameter]
    if not held:
        return ()
    had_state = bool(optimizer.state)
    optimizer.state.clear()
    optimizer._numel_cache = None
    return tuple(entry.name for entry in held) if had_state else ()


def _has_old_shape(value: Any, entry: SlicedParameter) -> bool:
    # Subclasses (quantized states) have a layout of their own, which a slice would break.
    plain = type(value) in (torch.Tensor, torch.nn.Parameter)
    return plain and value.shape == entry.old.shape


def _can_follow(value: Any, entry: SlicedParameter) -> bool:
    if isinstance(value, torch.Tensor):
        # A wrapper shows the state of the optimizer in it, which has followed already.
        followed = value.shape == entry.parameter.shape
        return _has_old_shape(value, entry) or followed or value.numel() == 1
    return value is None or isinstance(value, bool | int | float | str)


def _follow(value: Any, entry: SlicedParameter) -> Any:
    return entry.slice(value) if _has_old_shape(value, entry) else value
