"""When cuts happen, and whether they can."""

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

RECOVERIES = ("least_squares", "fold", "none")


def check_epochs(epochs: Sequence[int]) -> None:
    """Raise ``ValueError`` unless ``epochs`` are distinct integers from 0, at least one."""
    wanted = "give zero-based epochs such as [4], each once"
    if isinstance(epochs, str) or not isinstance(epochs, Sequence) or not epochs:
        raise ValueError(f"epochs is {epochs!r}; {wanted}.")
    for epoch in epochs:
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise ValueError(f"epochs has {epoch!r}, which is no integer; {wanted}.")
        if epoch < 0:
            raise ValueError(f"epochs has {epoch}, which is negative; {wanted}.")
        if list(epochs).count(epoch) > 1:
            raise ValueError(f"epochs has {epoch} more than once; {wanted}.")


def check_count(name: str, value: int, *, at_least: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer from ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} is {value!r}; it must be an integer >= {at_least}.")


def check_recovery(recovery: str, samples: int) -> None:
    """Raise ``ValueError`` unless a recovery of this name on so many samples is possible."""
    if recovery not in RECOVERIES:
        raise ValueError(f"recovery is {recovery!r}; it must be one of {', '.join(RECOVERIES)}.")
    check_count("recovery_samples", samples, at_least=1)


def check_patterns(name: str, patterns: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``patterns`` is a list of strings; one string is a likely slip."""
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{name} is {patterns!r}; it must be a list of strings such as ['features.*'].")


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

    Epochs of unknown length, time-based intervals and manual optimisation cannot be told beforehand.

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
    counted = trainer.max_steps != -1 and trainer.lightning_module.automatic_optimization
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


def check_alone(callback: pl.Callback, trainer: pl.Trainer) -> None:
    """Raise ``ValueError`` if there is another callback like this, whose cuts an undo would hit."""
    callbacks: list[pl.Callback] = vars(trainer)["callbacks"]  # set by a connector, unseen by types
    others = [c for c in callbacks if isinstance(c, type(callback)) and c is not callback]
    if others:
        raise ValueError(
            f"max_drop is set, and the Trainer has another {type(callback).__name__}: to undo a cut of "
            "one would undo the other's as well. Use one callback, or set max_drop to None."
        )


def is_dry_run(trainer: pl.Trainer) -> bool:
    """Whether the Trainer runs a few batches to try the code out (``fast_dev_run``)."""
    return bool(getattr(trainer, "fast_dev_run", False))
