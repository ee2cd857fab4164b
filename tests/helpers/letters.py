"""Digits in batches that only their own reader understands."""

from typing import Any

from torch import Tensor

from acsp_lightning import zoo


class Letters(zoo.DigitsDataModule):
    """Digits in batches that only :func:`split` understands."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"pixels": batch[0], "letter": batch[1]}


class LetterClassifier(zoo.ImageClassifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(split(batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(split(batch), batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(split(batch), batch_idx)


def split(batch: Any) -> tuple[Tensor, Tensor]:
    return batch["pixels"], batch["letter"]


def vgg() -> zoo.VGG:
    return zoo.VGG([[32, 32], [64, 64], [128]], in_channels=1)
