"""The network of a running fit changes its shape: the cut, the way back, and all who have to know."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from acsp_lightning.pipeline import Recovery, prune_network
from acsp_lightning.selection.proposal import Proposal
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.batchnorm import recalibrate_batchnorm
from acsp_lightning.structure.forward import eager_copy, random_state_restored
from acsp_lightning.structure.optimizer import nested_optimizers, slice_optimizer_state
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.refit import prepare_refit
from acsp_lightning.structure.surgery import check_plan
from acsp_lightning.trainer.averaging import averaged_copies
from acsp_lightning.trainer.loaders import training_batches, validation_batches
from acsp_lightning.trainer.monitors import reset_monitors
from acsp_lightning.trainer.ranks import broadcast_, is_rank_zero, on_rank_zero, run_on_all_ranks
from acsp_lightning.trainer.snapshot import Snapshot, restore_snapshot, take_snapshot


def rebuild_ddp(trainer: pl.Trainer) -> None:
    """Build the DistributedDataParallel wrapper anew, which holds the parameters of its first day."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = trainer.lightning_module
        strategy.configure_ddp()
        # Manual optimisation with a static graph flushes the first backward of every new wrapper.
        strategy._pl_static_graph_delay_done = False


T = TypeVar("T")


class FitSite:
    """A running fit, between two epochs, as the place of a cut.

    Args:
        trainer: of the fit.
        settings: what is cut, and how.
        before_cut: called when all is decided and nothing is changed yet.

    Attributes:
        is_cut: whether the cut was made.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        settings: PruningSettings,
        before_cut: Callable[[], None] = lambda: None,
    ) -> None:
        self.is_cut = False
        self._trainer = trainer
        self._settings = settings
        self._before_cut = before_cut

    @property
    def network(self) -> nn.Module:
        """The LightningModule."""
        return self._trainer.lightning_module

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the first process."""
        return is_rank_zero()

    def on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """Results of ``work`` on every process; where it fails on one, it fails on all."""
        return run_on_all_ranks(work)

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on the first process, on every process."""
        return on_rank_zero(work)

    def batches(self) -> Iterable[Any]:
        """The validation batches of this process that are captured."""
        return validation_batches(self._trainer, self._settings.max_batches)

    def uncut(self) -> nn.Module:
        """A copy of the network, which is about to be cut in place."""
        return eager_copy(self.network)

    def inform(self, message: str) -> None:
        """Log a message."""
        rank_zero_info(message)

    def prune(self, proposal: Proposal, recovery: Recovery) -> nn.Module:
        """Cut the network and its averaged copies; optimizers, wrappers and monitors follow."""
        trainer = self._trainer
        self._before_cut()
        run_on_all_ranks(lambda: _cut(trainer, proposal, recovery))
        if recovery.refits:
            broadcast_consumers(trainer, proposal.plan)
        if self._settings.batchnorm_batches and proposal.plan:
            run_on_all_ranks(self._recalibrate)
        self.is_cut = True
        refresh_trainer(trainer, forget_monitors=self._settings.reset_monitors)
        return self.network

    def _recalibrate(self) -> None:
        with random_state_restored():
            batches = training_batches(self._trainer)
            inputs = (self._settings.read_batch(batch)[0] for batch in batches)
            recalibrate_batchnorm(self.network, inputs, self._settings.batchnorm_batches)


def _cut(trainer: pl.Trainer, proposal: Proposal, recovery: Recovery) -> None:
    """Cut the network and its averaged copies, and let the optimizers follow.

    Raises:
        ValueError: if the plan does not fit the network or one of its copies; nothing is cut then.
        RuntimeError: if forward does not work after the cut; the network is as it was then.
    """
    copies = list(averaged_copies(trainer))
    for copy in copies:
        check_plan(copy, proposal.plan)
    sliced = prune_network(trainer.lightning_module, proposal, recovery)
    refit = recovery.refit
    for copy in copies:
        own = refit and prepare_refit(copy, refit.targets, refit.inputs)
        prune_network(copy, proposal, replace(recovery, refit=own), tried=False)
    dropped = [
        name
        for optimizer in nested_optimizers(trainer.optimizers)
        for name in slice_optimizer_state(optimizer, sliced)
    ]
    if dropped:
        rank_zero_warn(
            f"The optimizer's state of {', '.join(dropped)} has another shape than the parameter "
            "and cannot be cut with it; it was dropped and starts afresh."
        )


def broadcast_consumers(trainer: pl.Trainer, plan: PruningPlan) -> None:
    """Let every process have the first one's weights in the layers whose inputs a plan has cut."""
    layers = [cut.layer for cut in plan if cut.side == "in"]
    networks = (trainer.lightning_module, *averaged_copies(trainer))
    for network in networks:
        for layer in layers:
            broadcast_(network.get_submodule(layer).parameters())


def take_fit_snapshot(trainer: pl.Trainer) -> Snapshot:
    """The network, its averaged copies and its optimizers as they are now."""
    return take_snapshot(trainer.lightning_module, averaged_copies(trainer), trainer.optimizers)


def roll_back(trainer: pl.Trainer, snapshot: Snapshot) -> None:
    """Put the network, its averaged copies and its optimizers back, on every process."""
    run_on_all_ranks(
        lambda: restore_snapshot(
            snapshot, trainer.lightning_module, averaged_copies(trainer), trainer.optimizers
        )
    )


def refresh_trainer(trainer: pl.Trainer, *, forget_monitors: bool) -> None:
    """Let DistributedDataParallel, the compiler and the monitors know that the network is another."""
    rebuild_ddp(trainer)
    # After eight shapes of one function the compiler would give up.
    torch.compiler.reset()
    if forget_monitors:
        reset_monitors(trainer)
