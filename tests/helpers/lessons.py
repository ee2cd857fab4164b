"""Modules that learn from a teacher by a loss written by hand, beside those that know of none."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from helpers.fits import Classifier

WEIGHT, TEMPERATURE = 0.9, 4.0


class Pupil(Classifier):
    """Knows of no teacher, and logs its own loss; its training can be varied."""

    def __init__(self, net: nn.Module | None = None, manual: bool = False, **options: Any) -> None:
        super().__init__(net, **options)
        self.automatic_optimization = not manual
        self.logged: list[float] = []
        self.taught: list[float] = []

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images = batch[0] + 0.1 * torch.randn(batch[0].shape)  # as nobody can repeat
        logits = self.predict(images)
        own = functional.cross_entropy(logits, batch[1])
        loss = self.loss(own, logits, images)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", own)
        self.logged.append(own.item())
        return loss if self.automatic_optimization else None

    def loss(self, own: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        return own

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", functional.cross_entropy(self.predict(batch[0]), batch[1]))

    def on_train_batch_end(self, *_: Any) -> None:
        self.taught.append(float(self.trainer.callback_metrics.get("acsp/distillation_loss", 0.0)))


class HandTaught(Pupil):
    """The network at the end of epoch 0 is the teacher from then on.

    It is held where nobody finds it, or cuts would follow it.
    """

    teach: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self, *arguments: Any, weight: float = WEIGHT, temperature: float = TEMPERATURE, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.weight, self.temperature = weight, temperature

    def teacher_now(self) -> nn.Module:
        return deepcopy(self.net)

    def on_train_epoch_end(self) -> None:
        if self.teach is None:
            teacher = self.teacher_now().eval().requires_grad_(False)
            if dist.is_initialized():
                for tensor in teacher.buffers():
                    dist.broadcast(tensor, src=0)
            self.teach = lambda images: teacher(images)

    def loss(self, own: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        if self.teach is None:
            return own
        with torch.no_grad():
            wanted = self.teach(images)
        distance = self.temperature**2 * functional.kl_div(
            functional.log_softmax(logits.float() / self.temperature, 1),
            functional.log_softmax(wanted.float() / self.temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        self.by_hand = distance.item()
        return (1 - self.weight) * own + self.weight * distance

    def on_train_batch_end(self, *_: Any) -> None:
        self.taught.append(getattr(self, "by_hand", 0.0))
