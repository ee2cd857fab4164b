"""The LightningModule that trains and tests any image classifier."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from acsp_lightning.zoo.weights import load_weights

__all__ = ["ImageClassifier"]

Batch = tuple[Tensor, Tensor]


class ImageClassifier(pl.LightningModule):
    """Trains a network with cross-entropy on batches of ``(images, labels)``.

    Images are what ``network`` takes, labels int64 of shape (B,) in [0, num_classes). Logs
    ``train_loss`` at every step and, over the whole epoch, ``val_loss``, ``val_acc``, ``test_loss`` and
    ``test_acc``; accuracies are top-1, in [0, 1].

    Args:
        network: maps images to logits of shape (B, num_classes).
        num_classes: number of classes, at least 2.
        optimizer: builds the optimizer from the parameters. Default: SGD with learning rate 0.1,
            momentum 0.9 and weight decay 5e-4.
        lr_scheduler: builds the scheduler, stepped once per epoch, from the optimizer; None keeps
            the learning rate. `lightning.pytorch.cli.ReduceLROnPlateau` names its own monitor.
        weights: file of a state dict or checkpoint to load into ``network``; None: keep its weights.
            See :func:`acsp_lightning.zoo.weights.load_weights`.

    Raises:
        FileNotFoundError: if a file of weights is missing.
        ValueError: if a file of weights is of another network.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(
            parameters, lr=0.1, momentum=0.9, weight_decay=5e-4
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if weights is not None:
            load_weights(network, weights)
        self.network = network
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def setup(self, stage: str) -> None:
        """Check that data and network have the same number of classes, and set an example input.

        With a data module that has an ``image_shape`` (channels, height, width),
        ``example_input_array`` becomes one image, on which Lightning's model summary counts the FLOPs.

        Raises:
            ValueError: if the data module has another ``num_classes``.
        """
        data = getattr(self.trainer, "datamodule", None)
        shape = getattr(data, "image_shape", None)
        if shape is not None and self.example_input_array is None:
            self.example_input_array = torch.zeros(1, *shape)
        found = getattr(data, "num_classes", self.num_classes)
        if found != self.num_classes:
            raise ValueError(
                f"{type(data).__name__} has {found} classes, and {type(self).__name__} was built for "
                f"num_classes={self.num_classes}. Set num_classes of the module, and of its network, to "
                f"{found}, or name other data."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, num_classes)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the batch, a scalar."""
        images, labels = batch
        logits = self._logits(images)
        loss = functional.cross_entropy(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to ``val_loss`` and ``val_acc``."""
        self._evaluate("val", self.val_accuracy, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to ``test_loss`` and ``test_acc``."""
        self._evaluate("test", self.test_accuracy, batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Most likely class of every image, int64, shape (B,); the labels are ignored."""
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
        logits = self._logits(images)
        accuracy.update(logits, labels)
        loss = functional.cross_entropy(logits, labels)
        self.log(f"{stage}_loss", loss, batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}_acc", accuracy, batch_size=len(labels), prog_bar=True)

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self(images)
        if logits.shape != (len(images), self.num_classes):
            raise ValueError(
                f"{type(self.network).__name__} gives outputs of shape {tuple(logits.shape)} for "
                f"{len(images)} images; with num_classes={self.num_classes} they must be "
                f"{(len(images), self.num_classes)}. Give both the same number of classes."
            )
        return logits
