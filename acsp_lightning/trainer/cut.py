"""The network of a running fit changes its shape: the cut, the way back, and all who have to know."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from acsp_lightning.capture.class_names import class_names
from acsp_lightning.measure.time_table import LAYER_TIMES
from acsp_lightning.pipeline import prune_network
from acsp_lightning.progress import warn_on_error
from acsp_lightning.selection.proposal import Proposal
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.batchnorm import (
    match_batchnorm,
    matched_layers,
    measure_batchnorm,
    recalibrate_batchnorm,
)
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.example import as_arguments
from acsp_lightning.structure.fitted import correctable_layers, fitted_layers, unsliced_parameters
from acsp_lightning.structure.layer_cut import layer_cut
from acsp_lightning.structure.optimizer import (
    correct_weights,
    nested_optimizers,
    slice_optimizer_state,
)
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.pruning import Recovery
from acsp_lightning.structure.randomness import random_state_restored
from acsp_lightning.structure.refit import prepare_refit
from acsp_lightning.structure.surgery import (
    SlicedParameter,
    apply_plan,
    check_plan,
    kept_by_layer,
)
from acsp_lightning.trainer.averages import evaluated_network
from acsp_lightning.trainer.candidates import NetworkCopy
from acsp_lightning.trainer.checks import callbacks_of
from acsp_lightning.trainer.copies import Copies
from acsp_lightning.trainer.held_tensors import HeldTensor, held_tensors, slice_held
from acsp_lightning.trainer.loaders import training_batches, validation_batches
from acsp_lightning.trainer.loggers import report_dir
from acsp_lightning.trainer.monitors import reset_monitors
from acsp_lightning.trainer.ranks import (
    broadcast_,
    is_rank_zero,
    number_of_ranks,
    on_rank_zero,
    run_on_all_ranks,
    spread,
    to_rank_zero,
)
from acsp_lightning.trainer.snapshot import Snapshot, restore_snapshot, take_snapshot


def rebuild_ddp(trainer: pl.Trainer) -> None:
    """Build the DistributedDataParallel wrapper again, which expects the shapes of its first day."""
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
        copies: of the network; None: there are none.
        before_cut: called when all is decided and nothing is changed yet.

    Attributes:
        is_cut: whether the cut was made.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        settings: PruningSettings,
        copies: Copies | None = None,
        before_cut: Callable[[], None] = lambda: None,
    ) -> None:
        self.is_cut = False
        self._trainer = trainer
        self._settings = settings
        self._copies = copies or Copies()
        self._before_cut = before_cut

    @property
    def network(self) -> nn.Module:
        """The LightningModule, or the averaged copy that takes its place in validation."""
        return evaluated_network(self._trainer)

    @property
    def correctable_layers(self) -> Sequence[str]:
        """Layers that may be fitted although they lose nothing, by the network in training."""
        return correctable_layers(self._trainer.lightning_module)

    @property
    def is_averaged(self) -> bool:
        """Whether :attr:`network` is an averaged copy."""
        return self.network is not self._trainer.lightning_module

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the first process."""
        return is_rank_zero()

    @property
    def processes(self) -> int:
        """Number of processes of the fit."""
        return number_of_ranks()

    @property
    def times_file(self) -> Path | None:
        """Beside the reports, on the first process, where a share of the time is asked for."""
        if not self.is_rank_zero or self._settings.selection.latency is None:
            return None
        return warn_on_error(
            lambda: report_dir(self._trainer, self._settings) / LAYER_TIMES,
            "Times of layers could not be given a folder",
            "They are not kept for the next cut.",
        )

    def on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """Results of ``work`` on every process; where it fails on one, it fails on all."""
        return run_on_all_ranks(work)

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on the first process, on every process."""
        return on_rank_zero(work)

    def to_rank_zero(self, value: T) -> list[T]:
        """``value`` of every process on the first, and nothing on the others."""
        return to_rank_zero(value)

    def spread(self, name: str, works: Sequence[Callable[[], T]], costs: Sequence[float]) -> list[T]:
        """Results of works that are shared out among the processes, on the first."""
        return spread(name, works, costs)

    def batches(self) -> Iterable[Any]:
        """The validation batches of this process that are captured."""
        return validation_batches(self._trainer, self._settings.max_batches)

    def class_names(self) -> Sequence[str]:
        """Names of the classes, from the data module or the loaders."""
        trainer: Any = self._trainer
        return class_names(trainer.datamodule, trainer.val_dataloaders)

    def uncut(self) -> nn.Module:
        """A copy of the network, which is about to be cut in place."""
        return eager_copy(self.network)

    def inform(self, message: str) -> None:
        """Log a message."""
        rank_zero_info(message)

    def warn(self, message: str) -> None:
        """Warn on the first process."""
        rank_zero_warn(message)

    def prune(self, proposal: Proposal, recovery: Recovery) -> nn.Module:
        """Cut the network and its copies; optimizers, wrappers, monitors and hooks follow."""
        trainer, copies = self._trainer, self._copies.agreed()
        self._before_cut()
        made: list[_Cut] = []
        run_on_all_ranks(lambda: made.append(_cut(trainer, proposal, recovery, copies)))
        self.is_cut = True
        if recovery.refits:
            _broadcast_fitted(trainer, proposal.plan, copies)
        run_on_all_ranks(lambda: _follow(trainer, proposal.plan, made[0], copies))
        if self._settings.batchnorm_batches and proposal.plan:
            run_on_all_ranks(self._recalibrate)
            if recovery.refits:
                _broadcast_norms(trainer.lightning_module)
        refresh_trainer(trainer, forget_monitors=self._settings.reset_monitors)
        _tell(trainer, proposal.plan, made[0].sliced)
        return self.network

    def _recalibrate(self) -> None:
        """Take BatchNorm statistics from training batches; after a refit outputs stay as they are."""
        module, settings = self._trainer.lightning_module, self._settings
        with random_state_restored():
            batches = islice(training_batches(self._trainer), settings.batchnorm_batches)
            inputs = (settings.read_batch(batch)[0] for batch in batches)
            if settings.recovery == "least_squares":
                arguments = (as_arguments(module, given) for given in inputs)
                match_batchnorm(module, measure_batchnorm(module, arguments))
            else:
                recalibrate_batchnorm(module, inputs, settings.batchnorm_batches)

    def snapshot(self) -> Snapshot:
        """The network, its copies and its optimizers as they are now."""
        trainer, copies = self._trainer, self._copies.followed()
        metrics = trainer.callback_metrics
        return take_snapshot(
            trainer.lightning_module, copies, trainer.optimizers, held_tensors(trainer), metrics
        )

    def roll_back(self, snapshot: Snapshot) -> None:
        """Put the network, its copies and its optimizers back, on every process."""
        trainer, copies = self._trainer, self._copies.agreed()
        run_on_all_ranks(
            lambda: restore_snapshot(
                snapshot, trainer.lightning_module, copies, trainer.optimizers, held_tensors(trainer)
            )
        )
        refresh_trainer(trainer, forget_monitors=self._settings.reset_monitors)
        # Who looks next sees the network that is back, not the one that was judged.
        trainer.callback_metrics.update(snapshot.metrics)
        _tell(trainer, None, [])


@dataclass(frozen=True, slots=True)
class _Cut:
    """A cut that was made, for those that have yet to follow.

    Attributes:
        sliced: what it made smaller.
        held: tensors that others hold, from before it.
        unsliced: what recovery may change and the cut did not slice, from before it, by identity of
            the parameter.
        buffers: dimension and kept indices of the cuts of a buffer, by its identity before them.
    """

    sliced: tuple[SlicedParameter, ...]
    held: Sequence[HeldTensor]
    unsliced: Mapping[int, Tensor]
    buffers: Mapping[int, Sequence[tuple[int, Tensor]]]


def _recovers(copy: NetworkCopy) -> bool:
    """Whether a copy recovers by itself; others are corrected as the network was.

    Nobody knows the inputs of a part. Of a whole copy the first process makes the refit for all.
    """
    return not copy.prefix and copy.is_everywhere


def _cut(
    trainer: pl.Trainer, proposal: Proposal, recovery: Recovery, copies: Sequence[NetworkCopy]
) -> _Cut:
    """Cut the network, and the copies that recover by themselves.

    Raises:
        ValueError: if the plan does not fit the network or one of its copies; nothing is cut then.
        RuntimeError: if forward does not work after the cut; the network is as it was then.
    """
    live, evaluated = trainer.lightning_module, evaluated_network(trainer)
    for copy in copies:
        check_plan(copy.module, proposal.plan.part(live, copy.prefix.rstrip(".")))
    held = held_tensors(trainer)
    fitted = []
    if recovery.refits:
        fitted = unsliced_parameters(live, proposal.plan, correctable_layers(live))
        fitted += [p for layer in matched_layers(live).values() for p in layer.parameters()]
    unsliced = {id(parameter): parameter.detach().clone() for parameter in fitted}
    buffers = _buffer_cuts(live, proposal.plan)

    def own(network: nn.Module) -> Recovery:
        refit = recovery.refit
        if refit is None or network is evaluated:
            return recovery
        consumers = [side.layer for group in proposal.groups for side in group.consumers]
        norms = [norm for group in proposal.groups for norm in group.norms]
        # Averaged copies are often frozen: what may be fitted is decided by the network.
        own_refit = prepare_refit(network, consumers, refit.inputs, norms=norms, later=refit.later)
        return replace(recovery, refit=own_refit)

    sliced = prune_network(live, proposal, own(live))
    for copy in copies:
        if _recovers(copy):
            prune_network(copy.module, proposal, own(copy.module), tried=False)
    return _Cut(sliced, held, unsliced, buffers)


def _follow(trainer: pl.Trainer, plan: PruningPlan, made: _Cut, copies: Sequence[NetworkCopy]) -> None:
    """Let the other copies, optimizers and whoever holds tensors of the network follow its cut."""
    live, sliced = trainer.lightning_module, made.sliced
    fitted = fitted_layers(live, plan, correctable_layers(live))
    corrections = _corrections(fitted, sliced, made.unsliced)
    # Copies keep their scales, with their statistics; optimizers have none of these.
    scales = _corrections(matched_layers(live).values(), sliced, made.unsliced)
    for copy in copies:
        if not _recovers(copy):
            _cut_corrected(copy, live, plan, corrections)
    slice_held(made.held, sliced, corrections, made.buffers)
    dropped = [
        name
        for optimizer in nested_optimizers(trainer.optimizers)
        for name in slice_optimizer_state(optimizer, sliced)
    ]
    correct_weights(nested_optimizers(trainer.optimizers), {**scales, **corrections})
    if dropped:
        rank_zero_warn(
            f"The optimizer's state of {', '.join(dropped)} has another shape than the parameter "
            "and cannot be cut with it; it was dropped and starts again."
        )


def _buffer_cuts(network: nn.Module, plan: PruningPlan) -> dict[int, list[tuple[int, Tensor]]]:
    """What a plan is about to cut of buffers: dimension and kept indices, by identity of the buffer."""
    found: dict[int, list[tuple[int, Tensor]]] = {}
    for name, kept in kept_by_layer(plan).items():
        layer = network.get_submodule(name)
        for tensor, dim, stay in layer_cut(layer, kept).slices:
            buffer = layer._buffers.get(tensor)
            if buffer is not None:
                found.setdefault(id(buffer), []).append((dim, stay))
    return found


def _corrections(
    layers: Iterable[nn.Module],
    sliced: Sequence[SlicedParameter],
    unsliced: Mapping[int, Tensor],
) -> dict[int, Tensor]:
    """What recovery added to the parameters of layers, by identity of the parameter."""
    by_parameter = {id(entry.parameter): entry for entry in sliced}
    found = {}
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            entry = by_parameter.get(id(parameter))
            old = unsliced.get(id(parameter)) if entry is None else entry.slice(entry.old)
            if old is not None:
                found[id(parameter)] = parameter.detach() - old
    return found


def _cut_corrected(
    copy: NetworkCopy, network: nn.Module, plan: PruningPlan, corrections: Mapping[int, Tensor]
) -> None:
    """Cut a copy, and correct it as the network was."""
    apply_plan(copy.module, plan.part(network, copy.prefix.rstrip(".")))
    original = dict(network.get_submodule(copy.prefix.rstrip(".")).named_parameters())
    with torch.no_grad():
        for name, parameter in copy.module.named_parameters():
            correction = corrections.get(id(original[name]))
            if correction is not None:
                parameter.add_(correction.to(parameter))


def _broadcast_fitted(trainer: pl.Trainer, plan: PruningPlan, copies: Sequence[NetworkCopy]) -> None:
    """Let every process have the first one's parameters in the layers that recovered from a plan."""
    recovered = [copy.module for copy in copies if _recovers(copy)]
    later = correctable_layers(trainer.lightning_module)
    for network in (trainer.lightning_module, *recovered):
        for layer in fitted_layers(network, plan, later):
            broadcast_(layer.parameters())
        _broadcast_norms(network)


def _broadcast_norms(network: nn.Module) -> None:
    """Let every process have the first one's BatchNorm layers."""
    for norm in matched_layers(network).values():
        broadcast_([*norm.parameters(), *norm.buffers()])


def _tell(trainer: pl.Trainer, plan: PruningPlan | None, sliced: Sequence[SlicedParameter]) -> None:
    """Call ``on_pruned`` of the module and of every callback that has it."""
    module = trainer.lightning_module
    for holder, arguments in ((module, ()), *((c, (trainer, module)) for c in callbacks_of(trainer))):
        hook = getattr(holder, "on_pruned", None)
        if callable(hook):
            hook(*arguments, plan, tuple(sliced))


def refresh_trainer(trainer: pl.Trainer, *, forget_monitors: bool) -> None:
    """Let DistributedDataParallel, the compiler and the monitors know that the network is another."""
    rebuild_ddp(trainer)
    # After eight shapes of one function the compiler would give up.
    torch.compiler.reset()
    if forget_monitors:
        reset_monitors(trainer)
