"""What remembers how good the network was."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from acsp_lightning.trainer.checks import callbacks_of


def reset_monitors(trainer: pl.Trainer) -> None:
    """Let nothing compare a smaller network with the larger one it was.

    EarlyStopping and ReduceLROnPlateau forget their best value and start counting again;
    ModelCheckpoint ranks from scratch, and the files it wrote before stay where they are. The values
    that they watch are infinitely bad until they are logged again; till then the Trainer would offer
    those of the larger network, and without any a ModelCheckpoint could raise.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, EarlyStopping):
            callback.best_score = _forget_value(trainer, callback.monitor, callback.mode)
            callback.wait_count = 0
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = None
            callback.kth_value = _forget_value(trainer, callback.monitor, callback.mode)
    for configuration in trainer.lr_scheduler_configs:
        scheduler = configuration.scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            _forget_value(trainer, configuration.monitor, scheduler.mode)
            scheduler._reset()


def spare_stopping(trainer: pl.Trainer) -> None:
    """Let no EarlyStopping that looks now end the fit for a value that has yet to be logged.

    It would take infinity for a network that diverges, so it sees a finite value that is as bad.
    """
    metrics = trainer.callback_metrics
    for callback in callbacks_of(trainer):
        # The very tensor: an infinite loss of the network itself is none of ours.
        if isinstance(callback, EarlyStopping) and metrics.get(callback.monitor) is callback.best_score:
            metrics[callback.monitor] = callback.best_score.new_tensor(_finite_worst(callback))


def _forget_value(trainer: pl.Trainer, key: str | None, mode: str) -> Tensor:
    """Replace a logged value by the worst there is, and return that."""
    metrics = trainer.callback_metrics
    worst = torch.tensor(torch.inf if mode == "min" else -torch.inf)
    if key is None or key not in metrics:
        return worst
    if not torch.equal(metrics[key].cpu(), worst):
        metrics[key] = worst.to(metrics[key].device)
    return metrics[key]


def _finite_worst(stopping: EarlyStopping) -> float:
    if stopping.divergence_threshold is not None:
        return stopping.divergence_threshold
    largest = torch.finfo(torch.float32).max
    return largest if stopping.mode == "min" else -largest
