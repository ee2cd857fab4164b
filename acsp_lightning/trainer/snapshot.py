"""A network in training as it was at one moment, to go back to when a cut did not pay."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from acsp_lightning.structure.optimizer import held_beside, nested_optimizers
from acsp_lightning.structure.records import is_record
from acsp_lightning.structure.resizing import resize_layers
from acsp_lightning.trainer.candidates import NetworkCopy
from acsp_lightning.trainer.held_tensors import HeldTensor


@dataclass(frozen=True, slots=True)
class OptimizerSnapshot:
    """What an optimizer remembers of its parameters.

    Attributes:
        state: its state, by the position of the parameter in all groups; by name what belongs to none.
        beside: tensors that it holds for parameters beside its state, in the order in which
            :func:`acsp_lightning.structure.optimizer.held_beside` finds them.
    """

    state: Mapping[Any, Any]
    beside: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights and optimizer state; learning rates and schedules are not part of it.

    Attributes:
        weights: all parameters and buffers of the network, by name.
        copies: the same of every averaged copy of it, by name of the copy.
        optimizers: one for each optimizer, those that others hold included.
        held: tensors that callbacks or the module hold for parameters, by name of the place.
        metrics: what was logged of this network.
    """

    weights: Mapping[str, Tensor]
    copies: Mapping[str, Mapping[str, Tensor]]
    optimizers: Sequence[OptimizerSnapshot]
    held: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def take_snapshot(
    model: nn.Module,
    copies: Iterable[NetworkCopy],
    optimizers: Iterable[Optimizer],
    held: Iterable[HeldTensor] = (),
    metrics: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copy what a cut and the training after it will change; tensors stay on their devices.

    Args:
        model: the network.
        copies: its averaged copies.
        optimizers: of the fit.
        held: from :func:`acsp_lightning.trainer.held_tensors.held_tensors`.
        metrics: what was logged of the network.
    """
    return Snapshot(
        _cloned(model),
        {copy.name: _cloned(copy.module) for copy in copies},
        [_remembered(optimizer) for optimizer in nested_optimizers(optimizers)],
        {place.name: place.container[place.key].clone() for place in held},
        {name: value.detach().clone() for name, value in (metrics or {}).items()},
    )


def restore_snapshot(
    snapshot: Snapshot,
    model: nn.Module,
    copies: Iterable[NetworkCopy],
    optimizers: Iterable[Optimizer],
    held: Iterable[HeldTensor] = (),
) -> None:
    """Put the network, its copies and its optimizers back, in place.

    Parameters stay the same objects. Learning rates and other options stay as they are now. Copies and
    tensors of the network that nobody held then become what it is.

    Args:
        snapshot: taken earlier of the same objects.
        model: the network.
        copies: those that there are now.
        optimizers: in the order in which the snapshot was taken.
        held: those that there are now.
    """
    names = {id(tensor): name for name, tensor in _tensors(model).items()}
    for place in held:
        kept = snapshot.held.get(place.name, snapshot.weights.get(names[id(place.parameter)]))
        if kept is not None:
            place.container[place.key] = kept.to(place.parameter.device, copy=True)
    _put_back(model, snapshot.weights)
    for copy in copies:
        part = _part(snapshot.weights, copy.prefix)
        _put_back(copy.module, snapshot.copies.get(copy.name, part))
    for optimizer, remembered in zip(nested_optimizers(optimizers), snapshot.optimizers, strict=True):
        _remind(optimizer, remembered)


def _remembered(optimizer: Optimizer) -> OptimizerSnapshot:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    return OptimizerSnapshot(
        {places.get(id(key), key): deepcopy(value) for key, value in optimizer.state.items()},
        [container[place].clone() for container, place, _ in held_beside(optimizer)],
    )


def _remind(optimizer: Optimizer, kept: OptimizerSnapshot) -> None:
    # Past load_state_dict, which makes new groups: wrapped optimizers share theirs.
    owners = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for place, state in kept.state.items():
        if isinstance(place, int):
            parameter, group = owners[place]
            optimizer.state[parameter] = {k: _on_device(v, parameter, group) for k, v in state.items()}
        else:
            optimizer.state[place] = deepcopy(state)
    for (container, place, parameter), value in zip(held_beside(optimizer), kept.beside, strict=True):
        container[place] = value.to(parameter.device, copy=True)
    # LBFGS remembers how many numbers its parameters hold.
    vars(optimizer).update(dict.fromkeys(vars(optimizer).keys() & {"_numel_cache"}))


def _on_device(value: Any, parameter: Tensor, group: Mapping[str, Any]) -> Any:
    """A copy where the optimizer expects it: step counts stay on the CPU unless it says otherwise."""
    if not isinstance(value, Tensor):
        return deepcopy(value)
    if value.ndim or group.get("capturable") or group.get("fused"):
        return value.to(parameter.device, copy=True)
    return value.clone()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All of them: what users leave out of their state dict changes in training too."""
    parameters = module.named_parameters(remove_duplicate=False)  # parts go by any of their names
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def _cloned(module: nn.Module) -> dict[str, Tensor]:
    tensors = _tensors(module)
    clones = {id(tensor): tensor.detach().clone() for tensor in tensors.values()}
    return {name: clones[id(tensor)] for name, tensor in tensors.items()}


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): weight for n, weight in weights.items() if n.startswith(prefix)}


def _put_back(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    layers = {name.rpartition(".")[0] for name, _ in module.named_parameters()}
    own = {n: w for n, w in weights.items() if n.rpartition(".")[0] in layers or is_record(n)}
    resize_layers(module, own, whole=False)
    with torch.no_grad():
        for name, tensor in _tensors(module).items():
            if name not in weights:
                continue  # made since
            if tensor.shape == weights[name].shape:
                tensor.copy_(weights[name])
            else:
                owner, _, own_name = name.rpartition(".")
                setattr(module.get_submodule(owner), own_name, weights[name].to(tensor, copy=True))
