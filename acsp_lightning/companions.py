"""Other parts of a Lightning job that hold the network, or remember how good it was."""

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau


def averaged_copies(trainer: pl.Trainer) -> Iterator[nn.Module]:
    """The copies of the module whose weights the Trainer's callbacks average (EMA, SWA)."""
    for callback in _callbacks(trainer):
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            yield callback._average_model.module
        if isinstance(callback, StochasticWeightAveraging) and callback._average_model is not None:
            yield callback._average_model


def rewrap(trainer: pl.Trainer) -> None:
    """Build the DistributedDataParallel wrapper anew, which holds the parameters of its first day."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = trainer.lightning_module
        strategy.configure_ddp()
        # Manual optimisation with a static graph flushes the first backward of every new wrapper.
        strategy._pl_static_graph_delay_done = False


def save_uncut(trainer: pl.Trainer, epoch: int | None) -> None:
    """Write a checkpoint of the network before a cut beside those of the first ModelCheckpoint.

    The fit goes on without it where the file cannot be written.
    """
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.dirpath is None:
        return
    path = Path(checkpoint.dirpath, f"uncut-epoch={epoch}.ckpt")
    try:
        trainer.save_checkpoint(path)
    except (OSError, RuntimeError) as error:  # torch.save says a full disk in a RuntimeError
        rank_zero_warn(f"The network before the cut could not be saved to {path}: {error}.")
        # The process that writes has failed; the others wait for it here.
        trainer.strategy.barrier()


def reset_monitors(trainer: pl.Trainer) -> None:
    """Let nothing compare a smaller network with the larger one it was.

    EarlyStopping and ReduceLROnPlateau forget their best value and start counting anew;
    ModelCheckpoint ranks afresh, and the files it wrote before stay where they are. The values that
    they watch are unknown until they are logged again; till then the Trainer would offer those of the
    larger network.
    """
    for callback in _callbacks(trainer):
        if isinstance(callback, EarlyStopping):
            _forget_value(trainer, callback.monitor)
            callback.best_score = _worst(callback.mode)
            callback.wait_count = 0
        if isinstance(callback, ModelCheckpoint):
            _forget_value(trainer, callback.monitor)
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = None
            callback.kth_value = _worst(callback.mode)
    for configuration in trainer.lr_scheduler_configs:
        if isinstance(configuration.scheduler, ReduceLROnPlateau):
            _forget_value(trainer, configuration.monitor)
            configuration.scheduler._reset()


def _forget_value(trainer: pl.Trainer, key: str | None) -> None:
    """Replace a logged value by NaN, which ranks last for ModelCheckpoint and improves nothing.

    Taken away altogether, it could make a ModelCheckpoint raise.
    """
    if key is None or key not in trainer.callback_metrics:
        return
    value = torch.nan
    for callback in _callbacks(trainer):
        if isinstance(callback, EarlyStopping) and callback.monitor == key:
            value = _harmless(trainer, callback)
    trainer.callback_metrics[key] = torch.tensor(value, device=trainer.callback_metrics[key].device)


def _harmless(trainer: pl.Trainer, stopping: EarlyStopping) -> float:
    """A value that does not make ``stopping`` end the fit, should it look before a validation."""
    if not stopping._check_on_train_epoch_end or trainer.check_val_every_n_epoch == 1:
        return torch.nan
    if stopping.divergence_threshold is not None:
        return stopping.divergence_threshold
    largest = torch.finfo(torch.float32).max
    return largest if stopping.mode == "min" else -largest


def _worst(mode: str) -> torch.Tensor:
    return torch.tensor(torch.inf if mode == "min" else -torch.inf)


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    callbacks: list[pl.Callback] = vars(trainer)["callbacks"]  # set by a connector, unseen by types
    return callbacks
