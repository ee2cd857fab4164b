"""Knowledge distillation from a trained network."""

import torch
from torch import Tensor, nn

from acsp_lightning.functional import distillation_loss, taught_loss

__all__ = ["Teacher"]


class Teacher:
    """A frozen network, and a distillation loss from its outputs.

    Not an ``nn.Module``, so that a module can hold it without training, pruning, saving or counting it.
    It is moved to the device of the images.

    Args:
        network: maps images to logits; frozen and set to eval mode.
        weight: share w of the distillation in the loss, in [0, 1].
        temperature: T, above 0; the higher, the more the less likely classes count.

    Raises:
        ValueError: if a number is out of its range.

    References:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """

    def __init__(self, network: nn.Module, weight: float = 0.9, temperature: float = 4.0) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"The teacher's weight is {weight}; it must lie between 0 and 1.")
        if not temperature > 0:
            raise ValueError(f"The temperature is {temperature}; it must be above 0, such as 4.")
        self.network = network.eval().requires_grad_(False)
        self.weight = weight
        self.temperature = temperature

    def blend(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """``(1 - w) loss + w T^2 KL(teacher || student)``, a scalar.

        Args:
            loss: loss of the student, a scalar.
            logits: logits of the student, shape (B, C).
            images: images that the logits were computed from.
        """
        self.network.to(images.device)
        with torch.no_grad():
            wanted = self.network(images)
        return taught_loss(loss, distillation_loss(logits, wanted, self.temperature), self.weight)
