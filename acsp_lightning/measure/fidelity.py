"""A cut network compared with the uncut one, sample by sample."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.functional.precision import wide
from acsp_lightning.measure.accuracy import OutputReader, class_scores
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.forward import run_forward


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over samples.

    Attributes:
        mean: the mean.
        error: its standard error; NaN with a single sample.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """The mean of some values, (S,)."""
        values = wide(values)
        spread = float(values.std()) if len(values) > 1 else float("nan")
        return cls(float(values.mean()), spread / len(values) ** 0.5)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How much of the uncut network a cut one has kept, on S samples that neither was made with.

    Attributes:
        samples: S.
        accuracy: top-1 accuracy of the cut network, in [0, 1].
        drop: accuracy lost, paired by sample: negative if the cut network is better.
        agreement: share of the samples that both networks put into the same class, in [0, 1].
        score_error: squared error of the class scores, as a share of their variance over the classes in
            the uncut network, at least 0. What is added to all scores of a sample does not count, since
            it changes no probability.
    """

    samples: int
    accuracy: float
    drop: Estimate
    agreement: Estimate
    score_error: Estimate


def compare_scores(uncut: Tensor, cut: Tensor, labels: Tensor) -> Fidelity:
    """Compare the class scores of two networks.

    Args:
        uncut: scores of the uncut network, (S, C). Classes that it masks, with scores that are not
            finite, do not count for the sample.
        cut: scores of the cut one for the same samples, (S, C). Others that are not finite count as if
            there were none: a deep cut may overflow, and is no reason to end a fit.
        labels: class indices, (S,).
    """
    uncut, cut = wide(uncut), wide(cut)
    labels, known = labels.to(uncut.device), uncut.isfinite()
    cut = torch.where(known, torch.where(cut.isfinite(), cut, 0.0), uncut)
    before, after = uncut.argmax(1), cut.argmax(1)
    right_before, right_after = wide(before == labels), wide(after == labels)
    errors, power = _variation(cut - uncut, known), _variation(uncut, known).mean()
    return Fidelity(
        samples=len(labels),
        accuracy=float(right_after.mean()),
        drop=Estimate.of(right_before - right_after),
        agreement=Estimate.of(wide(before == after)),
        score_error=Estimate.of(errors / power.clamp(min=torch.finfo(power.dtype).tiny)),
    )


def _variation(scores: Tensor, known: Tensor) -> Tensor:
    """Variance over the known ones of the classes, (S,); 0 if there are none."""
    count = known.sum(1, keepdim=True).clamp(min=1)
    scores = torch.where(known, scores, 0.0)
    around = torch.where(known, scores - scores.sum(1, keepdim=True) / count, 0.0)
    return around.square().sum(1) / count.squeeze(1)


def collect_scores(
    model: nn.Module,
    inputs: Iterable[tuple[Any, ...]],
    labels: Tensor,
    read_outputs: OutputReader | None = None,
) -> Tensor | None:
    """Class scores of a network, (S, C); None if forward returns something else.

    Args:
        model: run in eval mode and restored.
        inputs: arguments of forward, by batch.
        labels: class indices of all samples, (S,).
        read_outputs: finds class scores in the outputs; None: as
            :func:`acsp_lightning.measure.accuracy.class_scores`.
    """
    largest, found = int(labels.max()), []
    with evaluation_state(model):
        for batch in inputs:
            scores = class_scores(run_forward(model, batch), read_outputs, largest)
            if scores is None:
                return None
            found.append(scores)
    joined = torch.cat(found)
    return joined if len(joined) == len(labels) else None
