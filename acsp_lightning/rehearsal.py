"""A cut on a copy: what it would do, while the network stays as it is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from acsp_lightning.batches import BatchReader, read_batch
from acsp_lightning.complexity import measure_complexity
from acsp_lightning.functional import SelectionConfig
from acsp_lightning.latency import LatencyComparison, compare_latency
from acsp_lightning.passes import count_correct
from acsp_lightning.report import PruningStep
from acsp_lightning.structure.forward import eager_copy
from acsp_lightning.structure.pruning import prune
from acsp_lightning.study import study_cut
from acsp_lightning.views import view_groups


def preview(
    model: nn.Module,
    dataloader: Iterable[Any],
    selection: SelectionConfig = SelectionConfig(),  # noqa: B008 - frozen, hence safe to share
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    residual: bool = False,
    recovery: Literal["least_squares", "fold", "none"] = "least_squares",
    recovery_samples: int = 512,
    round_to: int = 1,
    max_batches: int | None = None,
    read_batch: BatchReader = read_batch,
    latency_batch_sizes: Sequence[int] = (),
) -> PruningStep:
    """What :class:`acsp_lightning.ACSPPruningCallback` would do to a network now.

    Captures, selects, and cuts a copy, which is measured and thrown away. Weights, buffers, modes and
    hooks of ``model`` are left as they are, and so is torch's random state.

    Args:
        model: the trained network, a LightningModule or any other module.
        dataloader: labelled validation batches; read several times. Batches are moved to the device of
            the model.
        selection: how many channels would stay, and which.
        include: as in the callback, as are all that follow.
        exclude: see there.
        residual: see there.
        recovery: see there.
        recovery_samples: see there.
        round_to: see there.
        max_batches: see there.
        read_batch: see there.
        latency_batch_sizes: see there.

    Returns:
        The step as the callback would have it in its ``steps``, with ``epoch`` None.
        :func:`acsp_lightning.write_report` makes a page of it.

    Raises:
        ValueError: as the callback before a fit: no batch, labels that are no classes, a class missing,
            nothing to cut, or a volume that cannot be had.
    """
    devices = {tensor.device for tensor in model.parameters()} or {torch.device("cpu")}
    batches = _Batches(dataloader, devices.pop(), max_batches)
    with torch.random.fork_rng():
        study = study_cut(
            model,
            batches,
            selection,
            include=include,
            exclude=exclude,
            residual=residual,
            round_to=round_to,
            recovery_samples=recovery_samples,
            read_batch=read_batch,
        )
        smaller = eager_copy(model)
        moments = None if recovery == "none" else study.activations.input_moments
        prune(
            smaller,
            study.plan,
            study.example.traced,
            groups=study.groups,
            input_moments=moments,
            refit=study.refit if recovery == "least_squares" else None,
        )
        counted, selections = study.example.counted, study.allocation.selections
        latency: tuple[LatencyComparison, ...] = ()
        if latency_batch_sizes:
            latency = compare_latency(model, smaller, counted, latency_batch_sizes)
        return PruningStep(
            epoch=None,
            plan=study.plan,
            selections=selections,
            layers=study.plan.filters(study.groups),
            before=study.before,
            after=measure_complexity(smaller, counted),
            accuracy_before=_accuracy(model, batches, read_batch),
            accuracy_after=_accuracy(smaller, batches, read_batch),
            samples=study.activations.samples,
            comparison=study.allocation.comparison,
            network=study.allocation.network,
            latency=latency,
            views=view_groups(model, study.groups, study.activations, selections),
        )


@dataclass(frozen=True, slots=True)
class _Batches:
    """The first batches of a loader on a device, again and again."""

    source: Iterable[Any]
    device: torch.device
    most: int | None

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self.source, self.most):
            yield tree_map(
                lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, batch
            )


def _accuracy(model: nn.Module, batches: Iterable[Any], read_batch: BatchReader) -> float | None:
    counts = count_correct(model, batches, read_batch)
    return None if counts is None else counts[0] / counts[1]
