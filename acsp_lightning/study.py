"""What a cut would be, from a network and some batches alone: no Trainer, nothing changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from acsp_lightning.allocation import Allocation, decided, flops_budget, select_groups
from acsp_lightning.batches import (
    BatchReader,
    Example,
    as_arguments,
    check_labels,
    count_classes,
    read_batch,
)
from acsp_lightning.capture import ActivationCapture, Activations
from acsp_lightning.complexity import Complexity, measure_complexity
from acsp_lightning.functional import SelectionConfig, WidthReason
from acsp_lightning.passes import collect_inputs
from acsp_lightning.progress import tracked
from acsp_lightning.structure.fidelity import prunable_groups
from acsp_lightning.structure.forward import evaluation_state
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import PruningPlan, build_plan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.refit import Refit, prepare_refit


@dataclass(frozen=True, slots=True)
class Study:
    """A cut that could be made, with all that it rests on.

    Attributes:
        example: arguments of forward that the network was looked at with.
        groups: the groups that were looked at.
        activations: what was captured of them.
        refit: what their consumers give now.
        allocation: what stays of every group, and why.
        plan: the cut.
        before: complexity of the network as it is.
    """

    example: Example
    groups: tuple[ChannelGroup, ...]
    activations: Activations
    refit: Refit
    allocation: Allocation
    plan: PruningPlan
    before: Complexity


def study_cut(
    model: nn.Module,
    batches: Iterable[object],
    selection: SelectionConfig,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    residual: bool = False,
    round_to: int = 1,
    recovery_samples: int = 512,
    read_batch: BatchReader = read_batch,
    visited: Iterable[str] = (),
    layers: int | None = None,
    initial: Complexity | None = None,
    widths: Mapping[str, int] | None = None,
) -> Study:
    """Capture, select and plan, as :class:`acsp_lightning.ACSPPruningCallback` would, and cut nothing.

    Args:
        model: the network, on the device of the batches.
        batches: labelled batches on the same device; read three times, so no iterator that ends.
        selection: how many channels stay, and which.
        include: as in the callback, as are ``exclude``, ``residual``, ``round_to``,
            ``recovery_samples`` and ``read_batch``.
        exclude: see there.
        residual: see there.
        round_to: see there.
        recovery_samples: see there.
        read_batch: see there.
        visited: names of groups that are not looked at any more.
        layers: the plan cuts this many groups, first layer to last; None: all.
        initial: complexity that ``selection.flops`` is a share of; None: that of ``model``.
        widths: channels to keep of every group, instead of what ``selection`` says of the volume.

    Returns:
        The study; :func:`make_cut` makes the cut.

    Raises:
        ValueError: if there is no batch, labels are no classes, a class is missing, or the volume that
            is asked for cannot be had.
    """
    example, labels = None, []
    for batch in batches:
        inputs, found_labels = read_batch(batch)
        labels.append(check_labels(found_labels))
        example = example or Example.of(model, inputs)
    if example is None:
        raise ValueError("there is no batch to look at; pass at least one.")
    num_classes = count_classes(torch.cat(labels))
    before = measure_complexity(model, example.counted)
    found = prunable_groups(
        model, example.traced, include=include, exclude=exclude, residual=residual
    ).groups
    done = set(visited)
    groups = tuple(group for group in found if group.name not in done)
    looked_at = groups if selection.looks_at_network and widths is None else groups[:layers]

    capture = ActivationCapture(model, looked_at, selection.grid, num_classes)
    capture.attach()
    try:
        with evaluation_state(model):
            for batch in tracked(batches, "Capturing activations"):
                inputs, found_labels = read_batch(batch)
                capture.expect(check_labels(found_labels))
                model(*as_arguments(model, inputs))
    finally:
        capture.detach()
    activations = capture.finish()

    samples = collect_inputs(model, batches, read_batch, recovery_samples)
    assert samples is not None, "there are batches"
    consumers = dict.fromkeys(side.layer for group in looked_at for side in group.consumers)
    refit = prepare_refit(model, consumers, samples)
    given = None
    if widths is not None:
        given = decided({group.name: widths[group.name] for group in looked_at}, WidthReason.GIVEN)
    allocation = select_groups(
        model,
        looked_at,
        activations,
        selection,
        layer_flops=before.by_layer,
        targets=refit.targets,
        round_to=round_to,
        budget=flops_budget(selection, initial or before, before),
        widths=given,
    )
    cut = looked_at[:layers]
    kept = {group.name: allocation.selections[group.name].kept.tolist() for group in cut}
    return Study(example, looked_at, activations, refit, allocation, build_plan(cut, kept), before)


def make_cut(model: nn.Module, study: Study, recovery: str) -> None:
    """Cut the network that was studied, or a copy of it, in place.

    Args:
        model: the network.
        study: of it.
        recovery: "least_squares", "fold" or "none", as in :class:`acsp_lightning.ACSPPruningCallback`.

    Raises:
        RuntimeError: if forward does not work after the cut; the network is as it was then.
    """
    prune(
        model,
        study.plan,
        study.example.traced,
        groups=study.groups,
        input_moments=None if recovery == "none" else study.activations.input_moments,
        refit=study.refit if recovery == "least_squares" else None,
    )
