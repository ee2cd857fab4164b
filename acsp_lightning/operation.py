"""The network of a running fit changes its shape: the cut, the way back, and all who have to know."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from acsp_lightning.capture import Activations
from acsp_lightning.companions import averaged_copies, reset_monitors, rewrap
from acsp_lightning.ranks import copy_of_first, together
from acsp_lightning.snapshot import Snapshot, restore_snapshot, take_snapshot
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.optimizer import carry_optimizer
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.refit import Refit, prepare_refit
from acsp_lightning.structure.surgery import check_plan


def cut_in_fit(
    trainer: pl.Trainer,
    plan: PruningPlan,
    groups: Sequence[ChannelGroup],
    example: tuple[Any, ...],
    activations: Activations | None,
    refit: Refit | None = None,
) -> None:
    """Cut the network and its averaged copies, and let the optimizers follow.

    Args:
        trainer: in the fit, between two epochs.
        plan: what to keep; the same on every process.
        groups: the groups that the plan was built from.
        example: arguments of forward, to try the network with after the cut.
        activations: what was captured, to be folded into the consumers; None: nothing is.
        refit: what the consumers are fitted to afterwards, on the first process; None on the others,
            which get their weights by :func:`share_consumers`, and where nothing is fitted.

    Raises:
        ValueError: if the plan does not fit the network or one of its copies; nothing is cut then.
        RuntimeError: if forward does not work after the cut; the network is as it was then.
    """
    copies = list(averaged_copies(trainer))
    for copy in copies:
        check_plan(copy, plan)
    moments = None if activations is None else activations.input_moments
    module = trainer.lightning_module
    replacements = prune(module, plan, example, groups=groups, input_moments=moments, refit=refit)
    for copy in copies:
        own = refit and prepare_refit(copy, refit.targets, refit.inputs)
        prune(copy, plan, None, groups=groups, input_moments=moments, refit=own)
    dropped = [
        name for optimizer in trainer.optimizers for name in carry_optimizer(optimizer, replacements)
    ]
    if dropped:
        rank_zero_warn(
            f"The optimizer's state of {', '.join(dropped)} has another shape than the parameter "
            "and cannot be cut with it; it was dropped and starts afresh."
        )


def share_consumers(trainer: pl.Trainer, plan: PruningPlan) -> None:
    """Let every process have the first one's weights in the layers whose inputs a plan has cut."""
    layers = [cut.layer for cut in plan if cut.side == "in"]
    networks = (trainer.lightning_module, *averaged_copies(trainer))
    for network in networks:
        for layer in layers:
            copy_of_first(network.get_submodule(layer).parameters())


def snapshot_of_fit(trainer: pl.Trainer) -> Snapshot:
    """The network, its averaged copies and its optimizers as they are now."""
    return take_snapshot(trainer.lightning_module, averaged_copies(trainer), trainer.optimizers)


def undo_in_fit(trainer: pl.Trainer, snapshot: Snapshot) -> None:
    """Put the network, its averaged copies and its optimizers back, on every process."""
    together(
        lambda: restore_snapshot(
            snapshot, trainer.lightning_module, averaged_copies(trainer), trainer.optimizers
        )
    )


def settle(trainer: pl.Trainer, *, forget_monitors: bool) -> None:
    """Let DistributedDataParallel, the compiler and the monitors know that the network is another."""
    rewrap(trainer)
    # After eight shapes of one function the compiler would give up.
    torch.compiler.reset()
    if forget_monitors:
        reset_monitors(trainer)
