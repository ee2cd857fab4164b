"""When cuts happen, and whether they can."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.parameter import is_lazy

from acsp_lightning.capture.batches import read_with
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.example import as_arguments
from acsp_lightning.structure.forward import run_forward
from acsp_lightning.structure.randomness import random_state_restored


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """The callbacks of a Trainer."""
    callbacks: list[pl.Callback] = vars(trainer)["callbacks"]  # set by a connector, unseen by types
    return callbacks


def check_schedule(epochs: Sequence[int], trainer: pl.Trainer) -> None:
    """Raise ``ValueError`` if a capture or a cut at ``epochs`` could never happen in this fit.

    A capture needs a validation in its epoch, and a cut a training epoch after it.
    """
    if not trainer.enable_validation:
        raise ValueError(
            "Pruning gathers activations in the validation loop, and this fit has none. Give the "
            "module a validation_step and the data a val_dataloader, and leave limit_val_batches "
            "above 0."
        )
    last = None if trainer.max_epochs in (None, -1) else trainer.max_epochs - 2
    for epoch in epochs:
        if last is not None and epoch > last:
            allowed = f"at most {last}" if last >= 0 else "none, so max_epochs must be at least 2"
            raise ValueError(
                f"epochs has {epoch}, but with max_epochs={trainer.max_epochs} the cut after that "
                f"epoch's validation could never happen; allowed is {allowed}. Raise max_epochs or "
                "cut earlier."
            )
        every = trainer.check_val_every_n_epoch
        if every is not None and (epoch + 1) % every:
            raise ValueError(
                f"epochs has {epoch}, but check_val_every_n_epoch={every} leaves that epoch without a "
                f"validation to capture; epochs {every - 1}, {2 * every - 1}, ... have one."
            )


def check_step_schedule(epochs: Sequence[int], trainer: pl.Trainer, tuned: int = 0) -> None:
    """Raise ``ValueError`` if counts of training batches or steps leave no cut after one of ``epochs``.

    Epochs of unknown length, time-based intervals, manual optimisation and scheduled accumulation cannot
    be told beforehand.

    Args:
        epochs: zero-based.
        trainer: inside ``fit``, with its training data set up.
        tuned: whole epochs of training that have to follow each cut.
    """
    length = trainer.num_training_batches
    if length == float("inf"):
        return
    every = trainer.val_check_batch if trainer.check_val_every_n_epoch is None else None
    steps = -(-int(length) // trainer.accumulate_grad_batches)
    scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in callbacks_of(trainer))
    automatic = trainer.lightning_module.automatic_optimization
    counted = trainer.max_steps != -1 and automatic and not scheduled
    for epoch in epochs:
        if every is not None and (epoch + 1) * length // every == epoch * length // every:
            raise ValueError(
                f"epochs has {epoch}, but val_check_interval={trainer.val_check_interval} with "
                f"check_val_every_n_epoch=None and {length} training batches leaves that epoch without "
                "a validation to capture. Validate more often, or choose another epoch."
            )
        if counted and (epoch + 1 + tuned) * steps >= trainer.max_steps + bool(tuned):
            before = f"{tuned} epochs of tuning after" if tuned else "the cut after"
            raise ValueError(
                f"epochs has {epoch}, but with max_steps={trainer.max_steps} and {steps} steps in an "
                f"epoch the fit ends before {before} that epoch. Raise max_steps, or cut earlier."
            )


def passed_epochs(epochs: Iterable[int], trainer: pl.Trainer) -> set[int]:
    """Those of some epochs without a cut that come before this fit begins, with a warning."""
    passed = {epoch for epoch in epochs if epoch < trainer.current_epoch}
    if passed:
        rank_zero_warn(
            f"epochs has {', '.join(map(str, sorted(passed)))}, but this fit begins with epoch "
            f"{trainer.current_epoch} and has no cut from before: none will be made there. Choose later "
            "epochs, or make a new Trainer."
        )
    return passed


def check_trainer(trainer: pl.Trainer) -> None:
    """Raise ``TypeError`` or ``ValueError`` if networks cannot change their shape under this Trainer."""
    if not isinstance(trainer, pl.Trainer):
        raise TypeError(
            f"The Trainer is a {type(trainer).__module__}.{type(trainer).__qualname__}; its callbacks "
            "and strategies are other classes than those of lightning.pytorch. Import Trainer from "
            "lightning.pytorch."
        )
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            f"Pruning does not run under {type(strategy).__name__}, which shards or reshapes the "
            "parameters that a cut replaces. Use a single device or strategy='ddp'."
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "Pruning does not run under strategies that spawn or fork their processes "
            "(ddp_spawn, ddp_fork, ddp_notebook): at the end of fit they load the pruned weights into "
            "the uncut module of the main process. Use strategy='ddp'."
        )


GUARDED = "to roll back a cut of one would roll back the other's as well"
TAUGHT = "the first cut of one is not that of the network, and two teachers would blend a loss twice"


def check_alone(callback: pl.Callback, trainer: pl.Trainer, option: str, reason: str) -> None:
    """Raise ``ValueError`` if there is another callback like this.

    Args:
        callback: in the Trainer.
        trainer: of the fit.
        option: the callback's, that bears no other one.
        reason: why.
    """
    others = [c for c in callbacks_of(trainer) if isinstance(c, type(callback)) and c is not callback]
    if others:
        raise ValueError(
            f"{option} is set, and the Trainer has another {type(callback).__name__}: {reason}. Use one "
            f"callback, or set {option} to None."
        )


def is_fast_dev_run(trainer: pl.Trainer) -> bool:
    """Whether the Trainer runs a few batches to try the code out (``fast_dev_run``)."""
    return bool(getattr(trainer, "fast_dev_run", False))


def check_trainable(module: pl.LightningModule) -> None:
    """Raise ``ValueError`` if nothing of the network can be tuned."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            f"All parameters of {type(module).__name__} are frozen (requires_grad=False), so the "
            "network could not be tuned after a cut. Unfreeze some of them."
        )


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Shape of every parameter, by name; None for those that lazy layers have yet to make."""
    return {n: None if is_lazy(p) else tuple(p.shape) for n, p in module.named_parameters()}


def check_training_batch(module: pl.LightningModule, batch: Any, settings: PruningSettings) -> None:
    """Raise ``ValueError`` if BatchNorm statistics could not be estimated from such batches."""
    try:
        inputs, _ = read_with(settings.read_batch, batch)
        with random_state_restored(), evaluation_state(module):
            run_forward(module, as_arguments(module, inputs))
    except Exception as error:
        raise ValueError(
            f"batchnorm_batches is {settings.batchnorm_batches}, so read_batch gets batches of training "
            "too, as training_step gets them, and forward the inputs that it returns; with the first "
            "one that failed. Pass a read_batch that reads both kinds of batches, or set "
            f"batchnorm_batches to 0. ({type(error).__name__}: {error})"
        ) from error
