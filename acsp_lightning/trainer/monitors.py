"""What remembers how good the network was."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
)
from torch.optim.lr_scheduler import ReduceLROnPlateau

from acsp_lightning.trainer.checks import callbacks_of


def reset_monitors(trainer: pl.Trainer) -> None:
    """Let nothing compare a smaller network with the larger one it was.

    EarlyStopping and ReduceLROnPlateau forget their best value and start counting again;
    ModelCheckpoint ranks from scratch, and the files it wrote before stay where they are. The values
    that they watch are unknown until they are logged again; till then the Trainer would offer those of
    the larger network.
    """
    for callback in callbacks_of(trainer):
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
    for callback in callbacks_of(trainer):
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
