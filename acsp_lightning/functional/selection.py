"""Which channels of a layer to keep."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from acsp_lightning.functional.config import SelectionConfig
from acsp_lightning.functional.width import (
    ChannelCurves,
    WidthDecision,
    WidthReason,
    decide_width,
    trace_curves,
)


@dataclass(frozen=True, slots=True)
class ChannelSelection:
    """The channels of one layer to keep, with the data behind the choice. All tensors are on the CPU.

    Attributes:
        ks: numbers of clusters evaluated, int64, shape (K,); empty for N <= 2.
        coverage: weighted coverage at each k, shape (K,).
        mss: mean simplified silhouette at each k, shape (K,).
        decided_by: the layer's own curve that sets the width, if one does.
        knee: knee of that curve; None if there is none or it was not located.
        k: number of channels to keep.
        reason: why k has this value.
        medoids: medoids of the k clusters, ascending, int64, shape (k,).
        labels: position in ``medoids`` of each channel's medoid, int64, shape (N,).
        kept: channels to keep, ascending, int64, shape (k,); the medoids, unless the configuration
            selects others.
        weights: importance of the channels in the clustering, shape (N,).
    """

    ks: Tensor
    coverage: Tensor
    mss: Tensor
    decided_by: Literal["coverage", "mss"]
    knee: int | None
    k: int
    reason: WidthReason
    medoids: Tensor
    labels: Tensor
    kept: Tensor
    weights: Tensor

    @property
    def curve(self) -> Tensor:
        """The deciding curve, shape (K,)."""
        return self.coverage if self.decided_by == "coverage" else self.mss

    @property
    def width(self) -> int:
        """N, the number of channels before the selection."""
        return len(self.labels)


def select_channels(
    distances: Tensor,
    config: SelectionConfig = SelectionConfig(),  # noqa: B008 - frozen, hence safe to share
    *,
    weights: Tensor | None = None,
    magnitudes: Tensor | None = None,
    separability: Tensor | None = None,
    round_to: int = 1,
    curves: ChannelCurves | None = None,
    k: int | WidthDecision | None = None,
) -> ChannelSelection:
    """Select the channels of one layer to keep.

    Args:
        distances: distances between the channels, shape (N, N).
        config: how to select.
        weights: contribution of each channel to the next layer, shape (N,); used by weighting
            "contribution", where None weights all channels equally.
        magnitudes: L1 norm of each channel's filter, shape (N,); needed by representative "weight"
            and criterion "l1".
        separability: mean JM of each channel, shape (N,); needed by criterion "mean_jm".
        round_to: the number kept is rounded up to a multiple of this, never above N.
        curves: curves traced from these distances, used with the weights they were traced with; None:
            trace them.
        k: the number to keep, in 2..N (or N), used as it is; or a decision; None: decide from the
            curves.

    Returns:
        The selection. With k = N every channel is kept and is its own medoid.

    Raises:
        ValueError: if a score that the configuration needs is missing or malformed, ``k`` is out of
            range or not in ``curves``, or as ``trace_curves`` and ``decide_width``.
    """
    if curves is None:
        curves = trace_curves(distances, weights if config.weighting == "contribution" else None)
    width = len(curves.weights)
    if len(distances) != width:
        raise ValueError(
            f"distances are between {len(distances)} channels, but the curves are of {width}; "
            "pass the curves traced from these distances"
        )
    if k is None:
        decision = decide_width(curves, config, round_to=round_to)
    elif isinstance(k, WidthDecision):
        decision = k
    else:
        decision = WidthDecision(k, None, WidthReason.GIVEN)
    medoids, labels = _clustering(curves, decision.k)
    scores = {"magnitudes": magnitudes, "separability": separability}
    return ChannelSelection(
        ks=curves.ks,
        coverage=curves.coverage.cpu(),
        mss=curves.mss.cpu(),
        decided_by="mss" if config.curve == "mss" else "coverage",
        knee=decision.knee,
        k=decision.k,
        reason=decision.reason,
        medoids=medoids,
        labels=labels,
        kept=_pick(config, medoids, labels, scores),
        weights=curves.weights.cpu(),
    )


def _pick(
    config: SelectionConfig, medoids: Tensor, labels: Tensor, scores: dict[str, Tensor | None]
) -> Tensor:
    """The channels to keep, ascending, shape (k,)."""
    k, width = len(medoids), len(labels)
    if config.criterion == "random":
        generator = torch.Generator().manual_seed(config.seed)
        return torch.randperm(width, generator=generator)[:k].sort().values
    if config.criterion == "acsp" and config.representative == "medoid":
        return medoids
    name = "separability" if config.criterion == "mean_jm" else "magnitudes"
    score = _checked_score(name, scores[name], width)
    # Stable: ties go to the first channel, on every machine.
    ranked = score.sort(descending=True, stable=True).indices
    if config.criterion != "acsp":
        return ranked[:k].sort().values
    best = [int(ranked[labels[ranked] == cluster][0]) for cluster in range(k)]
    return torch.tensor(best).sort().values


def _clustering(curves: ChannelCurves, k: int) -> tuple[Tensor, Tensor]:
    width = len(curves.weights)
    if k == width:
        return torch.arange(width), torch.arange(width)
    row = torch.nonzero(curves.ks == k).flatten().tolist()
    if not row:
        raise ValueError(
            f"k is {k}, for which there is no clustering of {width} channels; "
            f"allowed are {width} and {curves.ks.tolist()}"
        )
    return curves.sweep.medoids[row[0]].cpu(), curves.sweep.labels[row[0]].cpu()


def _checked_score(name: str, score: Tensor | None, width: int) -> Tensor:
    if score is None:
        raise ValueError(f"{name} is missing, and this configuration ranks channels by it; pass it")
    if score.shape != (width,) or not bool(score.isfinite().all()):
        raise ValueError(
            f"{name} has shape {tuple(score.shape)} or values that are not finite; "
            f"it must be ({width},), one finite value for each channel"
        )
    return score.detach().cpu()
