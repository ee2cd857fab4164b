"""A network in training as it was at one moment, to go back to when a cut did not pay."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from acsp_lightning.structure.resizing import resize_layers


def save_uncut(trainer: pl.Trainer, epoch: int | None) -> None:
    """Write a checkpoint of the network before a cut beside those of the first ModelCheckpoint.

    The fit goes on without it where the file cannot be written.
    """
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.dirpath is None:
        return
    path = Path(checkpoint.dirpath, f"uncut-epoch={epoch}.ckpt")
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except (OSError, RuntimeError) as error:  # torch.save says a full disk in a RuntimeError
        rank_zero_warn(f"The network before the cut could not be saved to {path}: {error}.")
        # The process that writes has failed; the others wait for it here.
        trainer.strategy.barrier()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights and optimizer state; learning rates and schedules are not part of it.

    Attributes:
        weights: all parameters and buffers of the network, by name.
        copies: the same of every averaged copy of it.
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
        _put_back(module, weights)
    whole = {id(cut[name]): parameter for name, parameter in model.named_parameters() if name in cut}
    for optimizer, state in zip(optimizers, snapshot.optimizers, strict=True):
        for group in optimizer.param_groups:
            # In place: LBFGS holds the list itself.
            group["params"][:] = [whole.get(id(parameter), parameter) for parameter in group["params"]]
        optimizer.state.clear()
        # LBFGS remembers how many numbers its parameters hold.
        vars(optimizer).update(dict.fromkeys(vars(optimizer).keys() & {"_numel_cache"}))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All of them: what users leave out of their state dict changes in training too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _cloned(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}


def _put_back(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    layers = {name.rpartition(".")[0] for name, _ in module.named_parameters()}
    resize_layers(module, {n: w for n, w in weights.items() if n.rpartition(".")[0] in layers})
    with torch.no_grad():
        for name, tensor in _tensors(module).items():
            if name not in weights:
                continue  # made since
            if tensor.shape == weights[name].shape:
                tensor.copy_(weights[name])
            else:
                owner, _, own_name = name.rpartition(".")
                setattr(module.get_submodule(owner), own_name, weights[name].to(tensor, copy=True))
