"""Knowledge distillation: the distance of class scores from a teacher's, and a loss blended with it."""

import torch
from torch import Tensor


def distillation_loss(scores: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """``T^2 KL(teacher || student)`` of softened class probabilities, the mean over the samples.

    Probabilities are ``softmax(scores / T)``. The factor T^2 keeps the gradients comparable when T
    changes. This is the cross-entropy with the teacher's soft targets of Hinton et al., times T^2, less
    a term without gradient, so that it is 0 where both agree.

    Args:
        scores: logits of the student, (B, C); what is added to all scores of a sample does not count.
        teacher: logits of the teacher for the same samples, (B, C), without gradient.
        temperature: T, above 0; the higher, the more the less likely classes count.

    Returns:
        A scalar, at least 0 but for rounding, in float32 or wider.

    References:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    found, wanted = (
        torch.log_softmax(s.to(torch.promote_types(s.dtype, torch.float32)) / temperature, dim=1)
        for s in (scores, teacher)
    )
    return temperature**2 * ((wanted.exp() * (wanted - found)).sum() / len(found))


def taught_loss(loss: Tensor, distillation: Tensor, weight: float = 0.9) -> Tensor:
    """``(1 - w) loss + w distillation``.

    Args:
        loss: of the student without a teacher, a scalar.
        distillation: :func:`distillation_loss`, a scalar.
        weight: w, in [0, 1].
    """
    return (1 - weight) * loss + weight * distillation
