"""A network in training as it was at one moment, to go back to when a cut did not pay."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from acsp_lightning.checkpoint import resize_layers


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights and optimizer state; learning rates and schedules are not part of it.

    Attributes:
        weights: the network's state dict.
        copies: the state dict of every averaged copy of it.
        optimizers: the ``state`` of every optimizer's state dict.
    """

    weights: Mapping[str, Tensor]
    copies: Sequence[Mapping[str, Tensor]]
    optimizers: Sequence[Mapping[Any, Any]]


def take_snapshot(
    model: nn.Module, copies: Iterable[nn.Module], optimizers: Iterable[Optimizer]
) -> Snapshot:
    """Copy what a cut and the training after it will change; tensors stay on their devices."""
    return Snapshot(
        _cloned(model),
        [_cloned(copy) for copy in copies],
        [deepcopy(optimizer.state_dict()["state"]) for optimizer in optimizers],
    )


def restore_snapshot(
    snapshot: Snapshot, model: nn.Module, copies: Iterable[nn.Module], optimizers: Iterable[Optimizer]
) -> None:
    """Put the network, its copies and its optimizers back, in place.

    Parameters of another shape give way to new ones of the old shape, in the optimizers too, at their
    places in their groups. Learning rates and other options stay as they are now.

    Args:
        snapshot: taken earlier of the same objects.
        model: the network.
        copies: in the order in which the snapshot was taken.
        optimizers: in the order in which the snapshot was taken.
    """
    cut = dict(model.named_parameters())
    for module, weights in zip([model, *copies], [snapshot.weights, *snapshot.copies], strict=True):
        resize_layers(module, weights)
        module.load_state_dict(weights)
    whole = {id(cut[name]): parameter for name, parameter in model.named_parameters()}
    for optimizer, state in zip(optimizers, snapshot.optimizers, strict=True):
        for group in optimizer.param_groups:
            # In place: LBFGS holds the list itself.
            group["params"][:] = [whole.get(id(parameter), parameter) for parameter in group["params"]]
        optimizer.state.clear()
        # LBFGS remembers how many numbers its parameters hold.
        vars(optimizer).update(dict.fromkeys(vars(optimizer).keys() & {"_numel_cache"}))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _cloned(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
