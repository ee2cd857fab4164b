"""The Lightning module that trains and tests any picture classifier."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

__all__ = ["ImageClassifier"]

Batch = tuple[Tensor, Tensor]


class ImageClassifier(pl.LightningModule):
    """Trains a network with cross-entropy on batches of ``(images, labels)``.

    Images are what ``network`` takes, labels int64 of shape (B,) in [0, num_classes). Logged are
    ``train_loss`` at every step, and over the whole epoch ``val_loss``, ``val_acc``, ``test_loss``
    and ``test_acc``; accuracies are the share of pictures classified rightly, in [0, 1].

    Args:
        network: maps images to logits of shape (B, num_classes).
        num_classes: number of classes, at least 2.
        optimizer: builds the optimizer from the parameters. Default: SGD with learning rate 0.1,
            momentum 0.9 and weight decay 5e-4.
        lr_scheduler: builds the scheduler, stepped once per epoch, from the optimizer; None keeps
            the learning rate. `lightning.pytorch.cli.ReduceLROnPlateau` names its own monitor.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(
            parameters, lr=0.1, momentum=0.9, weight_decay=5e-4
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, num_classes)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch, a scalar."""
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the batch to ``val_loss`` and ``val_acc``."""
        self._evaluate("val", self.val_accuracy, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the batch to ``test_loss`` and ``test_acc``."""
        self._evaluate("test", self.test_accuracy, batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Most likely class of every picture, int64, shape (B,); the labels are not looked at."""
        images, _ = batch
        logits: Tensor = self(images)
        return logits.argmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all parameters, and its scheduler if there is one."""
        optimizer = self.optimizer(self.parameters())
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        configured: OptimizerLRScheduler = LightningCLI.configure_optimizers(self, optimizer, scheduler)
        return configured

    def _evaluate(self, stage: str, accuracy: MulticlassAccuracy, batch: Batch) -> None:
        images, labels = batch
        logits = self(images)
        accuracy.update(logits, labels)
        loss = functional.cross_entropy(logits, labels)
        self.log(f"{stage}_loss", loss, batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}_acc", accuracy, batch_size=len(labels), prog_bar=True)
