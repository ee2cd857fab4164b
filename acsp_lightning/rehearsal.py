"""A cut on a copy: what it would do, while the network stays as it is."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from acsp_lightning.batches import BatchReader, read_batch
from acsp_lightning.complexity import measure_complexity
from acsp_lightning.functional import SelectionConfig
from acsp_lightning.latency import LatencyComparison, check_batch_sizes, compare_latency
from acsp_lightning.passes import count_correct
from acsp_lightning.report import PruningStep
from acsp_lightning.schedule import check_count, check_patterns, check_recovery
from acsp_lightning.structure.forward import eager_copy
from acsp_lightning.study import make_cut, study_cut
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
    layers: int | None = None,
) -> PruningStep:
    """What :class:`acsp_lightning.ACSPPruningCallback` would do to a network now.

    Captures, selects, and cuts a copy, which is measured and thrown away. Weights, buffers, modes and
    hooks of ``model`` are left as they are, and so is the random state. BatchNorm statistics are not
    estimated afresh.

    Args:
        model: the trained network, a LightningModule or any other module.
        dataloader: labelled validation batches; read several times, so no iterator that ends. Batches
            are moved to the device of the model.
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
        layers: preview the first cut of a callback with ``layers_per_epoch``; None: a cut of all groups.

    Returns:
        The step as the callback would have it in its ``steps``, with ``epoch`` None.
        :func:`acsp_lightning.write_report` makes a page of it.

    Raises:
        ValueError: if an argument is out of its range, or ``dataloader`` an iterator; and as the
            callback before a fit: no batch, labels that are no classes, a class missing, nothing to cut,
            or a volume that cannot be had.
    """
    if isinstance(dataloader, Iterator):
        raise ValueError(
            f"dataloader is a {type(dataloader).__name__}, which can be read once; a preview reads the "
            "batches several times. Pass the loader, or a list."
        )
    check_recovery(recovery, recovery_samples)
    check_count("round_to", round_to, at_least=1)
    for name, count in (("max_batches", max_batches), ("layers", layers)):
        if count is not None:
            check_count(name, count, at_least=1)
    check_patterns("include", include)
    check_patterns("exclude", exclude)
    check_batch_sizes("latency_batch_sizes", latency_batch_sizes)
    devices = {tensor.device for tensor in model.parameters()} or {torch.device("cpu")}
    batches = _Batches(dataloader, devices.pop(), max_batches)
    with isolate_rng():
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
            layers=layers,
        )
        smaller = eager_copy(model)
        make_cut(smaller, study, recovery)
        groups, counted = study.groups[:layers], study.example.counted
        selections = {group.name: study.allocation.selections[group.name] for group in groups}
        latency: tuple[LatencyComparison, ...] = ()
        if latency_batch_sizes:
            latency = compare_latency(model, smaller, counted, latency_batch_sizes)
        return PruningStep(
            epoch=None,
            plan=study.plan,
            selections=selections,
            layers=study.plan.filters(groups),
            before=study.before,
            after=measure_complexity(smaller, counted),
            accuracy_before=_accuracy(model, batches, read_batch),
            accuracy_after=_accuracy(smaller, batches, read_batch),
            samples=study.activations.samples,
            comparison=study.allocation.comparison,
            network=study.allocation.network,
            latency=latency,
            views=view_groups(model, groups, study.activations, selections),
        )


@dataclass(frozen=True, slots=True)
class _Batches:
    """The first batches of a loader on a device, again and again."""

    source: Iterable[Any]
    device: torch.device
    most: int | None

    def __len__(self) -> int:
        known = len(self.source) if isinstance(self.source, Sized) else 0
        return known if self.most is None else min(known, self.most)

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self.source, self.most):
            yield tree_map(
                lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, batch
            )


def _accuracy(model: nn.Module, batches: Iterable[Any], read_batch: BatchReader) -> float | None:
    counts = count_correct(model, batches, read_batch)
    return None if counts is None else counts[0] / counts[1]
